// The backward pass of visibility_gradient on the GPU: one warp a line finds where gradients are, then one warp a face
// scans its edges.
#include "raster/face_gradients.h"
#include "raster/nmr_math.h"
#include "raster/visibility_tensors.h"

namespace dhpe {
namespace {

// Rows or columns of all images.
struct ScanLines {
  int count, size;          // lines of an image; pixels of a line
  int64_t line_step, step;  // from one line to the next, from one pixel of a line to the next
  int32_t* first;           // (B, count) the first pixel with a gradient
  int32_t* last;            // (B, count) and the last; first > last where there is none
};

template <typename T>
__global__ void __launch_bounds__(kTaskThreads)
    find_gradients(VisibilityBackward<T> p, ScanLines lines, int64_t batch, uint8_t* visible) {
  const int64_t pixels = static_cast<int64_t>(p.mesh.height) * p.mesh.width;
  for (int64_t task = first_task(); task < batch * lines.count; task += task_step()) {
    const int64_t image = task / lines.count, from = image * pixels + task % lines.count * lines.line_step;
    int first = lines.size, last = -1;
    for (int d = lane_of(); d < lines.size; d += kWarp) {
      const int64_t pixel = from + d * lines.step;
      const int32_t face = p.face_index[pixel];
      if (visible && face >= 0 && face < p.mesh.n_faces) visible[image * p.mesh.n_faces + face] = 1;
      bool any = false;
      for (int k = 0; k < p.channels; ++k) any = any || p.grad[pixel * p.channels + k] != T(0);
      if (!any) continue;
      if (first > d) first = d;
      last = d;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const int other_first = __shfl_xor_sync(kAllLanes, first, step);
      const int other_last = __shfl_xor_sync(kAllLanes, last, step);
      if (first > other_first) first = other_first;
      if (last < other_last) last = other_last;
    }
    if (lane_of() == 0) {
      lines.first[task] = first;
      lines.last[task] = last;
    }
  }
}

// What the loss would fall by if pixel `d` took the colour of pixel `r`.
template <typename T>
__device__ T delta(const VisibilityBackward<T>& p, int64_t d, int64_t r) {
  T sum = T(0);
  for (int k = 0; k < p.channels; ++k)
    sum += (p.image[d * p.channels + k] - p.image[r * p.channels + k]) * p.grad[d * p.channels + k];
  return sum;
}

// dL/dm of the edge's two end points, negated; every thread of the team holds a part. Its warps share the lines, their
// lanes the pixels of a line.
template <typename T>
__device__ void scan_visibility(const VisibilityBackward<T>& p, const ScanLines& lines, const NmrScan<T>& s,
                                int64_t image, int64_t face, Team team, T* pull) {
  const NmrEdge<T>& e = s.edge;
  const int64_t pixels = static_cast<int64_t>(p.mesh.height) * p.mesh.width;
  T outwards[2] = {}, inwards[2] = {};
  for (int line = e.first + team.warp; line <= e.last; line += team.warps) {
    const int first = lines.first[image * lines.count + line], last = lines.last[image * lines.count + line];
    NmrCrossing<T> x;
    if (first > last || !nmr_crossing(e, line, lines.size, x)) continue;
    const int64_t from = image * pixels + line * lines.line_step;
    const int64_t in = from + x.in * lines.step, out = from + x.out * lines.step;
    const T margin0 = nmr_margin(s.eps_px, x.t0), margin1 = nmr_margin(s.eps_px, x.t1);
    const bool is_own = p.face_index[in] == face;
    for (int d = first + lane_of(); d <= last; d += kWarp) {
      const bool beyond = (d - x.in) * e.outward > 0;
      const int64_t pixel = from + d * lines.step;
      if (beyond ? !is_own : d < s.low || d > s.high || p.face_index[pixel] != face) continue;
      const T w = delta(p, pixel, beyond ? in : out);
      if (!(w > 0)) continue;
      const T distance = std::fabs(static_cast<T>(d) - x.at);
      const T pull0 = nmr_pull(w, distance, x.t0, margin0), pull1 = nmr_pull(w, distance, x.t1, margin1);
      outwards[0] += beyond ? pull0 : T(0);
      outwards[1] += beyond ? pull1 : T(0);
      inwards[0] += beyond ? T(0) : pull0;
      inwards[1] += beyond ? T(0) : pull1;
    }
  }
  for (int k = 0; k < 2; ++k) pull[k] = static_cast<T>(e.outward) * (outwards[k] - inwards[k]);
}

// What FaceGradients asks for.
template <typename T>
struct VisibilityGradient {
  VisibilityBackward<T> p;
  ScanLines rows, columns;
  const uint8_t* visible;  // (B, F)

  struct Prepared {
    NmrFace<T> face;
    __device__ PixelBox pixels() const { return {face.x_low, face.x_high, face.y_low, face.y_high}; }
  };

  __device__ bool prepare(int64_t image, int64_t face, Prepared& prepared) const {
    const RasterMesh<T>& m = p.mesh;
    if (!visible[image * m.n_faces + face] || !has_vertices(m, face)) return false;
    prepared.face = nmr_face(m, m.verts_px + image * m.n_verts * 3, face);
    return true;
  }

  __device__ void add(int64_t image, int64_t face, const Prepared& prepared, Team team, T* part) const {
#pragma unroll  // so that corners are addressed at compile time, in registers
    for (int scan = 0; scan < kNmrScans; ++scan) {
      NmrScan<T> s;
      if (!nmr_scan(prepared.face, p.mesh, p.eps, scan, s)) continue;
      T pull[2];
      scan_visibility(p, s.by_columns ? columns : rows, s, image, face, team, pull);
      const int axis = s.by_columns ? 1 : 0;
      part[3 * s.begin + axis] -= pull[0];
      part[3 * s.end + axis] -= pull[1];
    }
  }
};

Tensor visibility_backward_cuda(Tensor grad, Tensor image, Tensor face_index, Tensor verts_px, Tensor faces, double eps,
                                bool deterministic) {
  const VisibilityTensors in("_visibility_gradient_backward", grad, image, face_index, verts_px, faces);
  const int64_t B = in.batch(), H = in.mesh.height, W = in.mesh.width, F = in.mesh.faces.size(0);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  const cudaStream_t stream = current_stream(verts_px);
  Tensor ends = torch::stable::new_empty(verts_px, {2 * B * (H + W)}, ScalarType::Int);
  Tensor flags = torch::stable::new_empty(verts_px, {B * F}, ScalarType::Byte);
  int32_t* end = ends.mutable_data_ptr<int32_t>();
  uint8_t* visible = flags.mutable_data_ptr<uint8_t>();
  const int h = static_cast<int>(H), w = static_cast<int>(W);
  const ScanLines rows = {h, w, W, 1, end, end + B * H};
  const ScanLines columns = {w, h, 1, W, end + 2 * B * H, end + 2 * B * H + B * W};
  Tensor grad_verts;
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    FaceGradients<scalar_t> out(in.mesh, deterministic, stream);
    grad_verts = out.grad_verts();
    if (out.is_empty()) return;
    const auto p = in.arguments<scalar_t>(eps, out.verts());
    zero_async(visible, B * F, stream);
    find_gradients<scalar_t><<<warp_blocks(B * H), kTaskThreads, 0, stream>>>(p, rows, B, visible);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    find_gradients<scalar_t><<<warp_blocks(B * W), kTaskThreads, 0, stream>>>(p, columns, B, nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    out.add_up(VisibilityGradient<scalar_t>{p, rows, columns, visible});
  });
  return grad_verts;
}

Tensor visibility_cuda(Tensor image, Tensor face_index, Tensor verts_px, Tensor faces, double eps) {
  (void)eps;  // acts in the backward pass
  const VisibilityTensors in("visibility_gradient", image, image, face_index, verts_px, faces);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  return torch::stable::clone(image);
}

}  // namespace
}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("visibility_gradient", TORCH_BOX(&dhpe::visibility_cuda));
  m.impl("_visibility_gradient_backward", TORCH_BOX(&dhpe::visibility_backward_cuda));
}
