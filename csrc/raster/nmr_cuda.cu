// The backward pass of the "nmr" silhouette on the GPU. One warp a row or column first lists the pixels that pull
// outwards (uncovered, to be covered); one warp a face then visits those lists.
#include "raster/face_gradients.h"
#include "raster/nmr_math.h"
#include "raster/raster_tensors.h"
#include "raster/silhouette_cuda.h"

namespace dhpe {
namespace {

// Rows or columns of all images. Positions fit 16 bits since images are at most kMaxImageSize wide and high.
struct PulledLines {
  int count, size;          // lines of an image; pixels of a line
  int64_t line_step, step;  // from one line to the next, from one pixel of a line to the next
  uint16_t* position;       // (B, count, size) missing pixels in ascending order
  int32_t* n_missing;       // (B, count)
  uint8_t* has_excess;      // (B, count)
};

struct Pulls {
  PulledLines rows, columns;
  uint8_t* visible;  // (B, F)
};

template <typename T>
__global__ void __launch_bounds__(kTaskThreads)
    list_missing_pixels(NmrBackward<T> p, PulledLines lines, int64_t batch, uint8_t* visible) {
  const int64_t pixels = static_cast<int64_t>(p.mesh.height) * p.mesh.width;
  const int lane = lane_of();
  for (int64_t task = first_task(); task < batch * lines.count; task += task_step()) {
    const int64_t image = task / lines.count, line = task % lines.count;
    const int64_t from = image * pixels + line * lines.line_step;
    uint16_t* position = lines.position + task * lines.size;
    int found = 0;
    bool excess = false;
    for (int begin = 0; begin < lines.size; begin += kWarp) {
      const int d = begin + lane;
      bool missing = false;
      if (d < lines.size) {
        const int32_t face = p.face_index[from + d * lines.step];
        const T g = p.grad_mask[from + d * lines.step];
        missing = face < 0 && g < 0;
        excess = excess || (face >= 0 && g > 0);
        if (visible && face >= 0 && face < p.mesh.n_faces) visible[image * p.mesh.n_faces + face] = 1;
      }
      const unsigned votes = __ballot_sync(kAllLanes, missing);
      if (missing) position[found + votes_before(votes)] = static_cast<uint16_t>(d);
      found += __popc(votes);
    }
    const bool any_excess = __any_sync(kAllLanes, excess);
    if (lane == 0) {
      lines.n_missing[task] = found;
      lines.has_excess[task] = any_excess;
    }
  }
}

// dL/dm of the edge's two end points, negated; every thread of the team holds a part. Its warps share the lines, their
// lanes the pixels of a line.
template <typename T>
__device__ void scan_edge(const PulledLines& lines, int64_t image, const int32_t* index, const T* grad,
                          const NmrScan<T>& s, int64_t face, Team team, T* pull) {
  const NmrEdge<T>& e = s.edge;
  T outwards[2] = {}, inwards[2] = {};
  for (int line = e.first + team.warp; line <= e.last; line += team.warps) {
    const int64_t at_line = image * lines.count + line;
    const int missing = lines.n_missing[at_line];
    const bool has_excess = lines.has_excess[at_line];
    NmrCrossing<T> x;
    if ((missing == 0 && !has_excess) || !nmr_crossing(e, line, lines.size, x)) continue;
    const int32_t* line_index = index + line * lines.line_step;
    const T* line_grad = grad + line * lines.line_step;
    const T margin0 = nmr_margin(s.eps_px, x.t0), margin1 = nmr_margin(s.eps_px, x.t1);
    if (missing > 0 && line_index[x.in * lines.step] == face) {
      const uint16_t* position = lines.position + at_line * lines.size;
      for (int i = lane_of(); i < missing; i += kWarp) {
        const int d = position[i];
        if ((d - x.in) * e.outward <= 0) continue;
        const T w = -line_grad[d * lines.step], distance = std::fabs(static_cast<T>(d) - x.at);
        outwards[0] += nmr_pull(w, distance, x.t0, margin0);
        outwards[1] += nmr_pull(w, distance, x.t1, margin1);
      }
    }
    if (has_excess && line_index[x.out * lines.step] < 0) {
      // From `x.in` inwards; rounding may put that beyond the face.
      const int start = e.outward > 0 ? (x.in < s.high ? x.in : s.high) : (x.in > s.low ? x.in : s.low);
      for (int d = start - e.outward * lane_of(); d >= s.low && d <= s.high; d -= e.outward * kWarp) {
        const T w = line_grad[d * lines.step];
        if (line_index[d * lines.step] != face || !(w > 0)) continue;
        const T distance = std::fabs(static_cast<T>(d) - x.at);
        inwards[0] += nmr_pull(w, distance, x.t0, margin0);
        inwards[1] += nmr_pull(w, distance, x.t1, margin1);
      }
    }
  }
  for (int k = 0; k < 2; ++k) pull[k] = static_cast<T>(e.outward) * (outwards[k] - inwards[k]);
}

// What FaceGradients asks for.
template <typename T>
struct NmrGradient {
  NmrBackward<T> p;
  Pulls pulls;

  struct Prepared {
    NmrFace<T> face;
    __device__ PixelBox pixels() const { return {face.x_low, face.x_high, face.y_low, face.y_high}; }
  };

  __device__ bool prepare(int64_t image, int64_t face, Prepared& prepared) const {
    const RasterMesh<T>& m = p.mesh;
    if (!pulls.visible[image * m.n_faces + face]) return false;
    if (!has_vertices(m, face)) return false;  // a caller's own face_index can name any face
    prepared.face = nmr_face(m, m.verts_px + image * m.n_verts * 3, face);
    return true;
  }

  __device__ void add(int64_t image, int64_t face, const Prepared& prepared, Team team, T* part) const {
    const int64_t pixels = static_cast<int64_t>(p.mesh.height) * p.mesh.width;
    const int32_t* index = p.face_index + image * pixels;
    const T* grad = p.grad_mask + image * pixels;
#pragma unroll  // so that corners are addressed at compile time, in registers
    for (int scan = 0; scan < kNmrScans; ++scan) {
      NmrScan<T> s;
      if (!nmr_scan(prepared.face, p.mesh, p.eps, scan, s)) continue;
      T pull[2];
      scan_edge(s.by_columns ? pulls.columns : pulls.rows, image, index, grad, s, face, team, pull);
      const int axis = s.by_columns ? 1 : 0;
      part[3 * s.begin + axis] -= pull[0];
      part[3 * s.end + axis] -= pull[1];
    }
  }
};

// The memory behind Pulls.
struct PullTensors {
  Tensor positions, missing, flags;
  Pulls pulls;

  PullTensors(const Tensor& verts_px, int64_t B, int64_t H, int64_t W, int64_t F)
      : positions(torch::stable::new_empty(verts_px, {2, B * H * W}, ScalarType::Short)),
        missing(torch::stable::new_empty(verts_px, {B * (H + W)}, ScalarType::Int)),
        flags(torch::stable::new_empty(verts_px, {B * (H + W + F)}, ScalarType::Byte)) {
    uint16_t* position = reinterpret_cast<uint16_t*>(positions.mutable_data_ptr<int16_t>());
    int32_t* count = missing.mutable_data_ptr<int32_t>();
    uint8_t* flag = flags.mutable_data_ptr<uint8_t>();
    const int h = static_cast<int>(H), w = static_cast<int>(W);
    pulls.rows = {h, w, W, 1, position, count, flag};
    pulls.columns = {w, h, 1, W, position + B * H * W, count + B * H, flag + B * H};
    pulls.visible = flag + B * (H + W);
  }
};

}  // namespace

Tensor silhouette_nmr_backward_cuda(Tensor grad_mask, Tensor face_index, Tensor verts_px, Tensor faces, double eps,
                                    bool deterministic) {
  const RasterMeshTensors mesh("_silhouette_nmr_backward", verts_px, faces, extent(face_index, 1),
                               extent(face_index, 2));
  const int64_t B = verts_px.size(0), H = mesh.height, W = mesh.width, F = mesh.faces.size(0);
  check_tensor("_silhouette_nmr_backward", "grad_mask", grad_mask, {B, H, W}, verts_px.scalar_type(), verts_px);
  check_tensor("_silhouette_nmr_backward", "face_index", face_index, {B, H, W}, ScalarType::Int, verts_px);
  const torch::stable::accelerator::DeviceGuard guard(verts_px.get_device_index());
  grad_mask = torch::stable::contiguous(grad_mask);
  face_index = torch::stable::contiguous(face_index);
  const cudaStream_t stream = current_stream(verts_px);
  PullTensors work(verts_px, B, H, W, F);
  Tensor grad_verts;
  DHPE_DISPATCH_FLOATING(verts_px, [&] {
    FaceGradients<scalar_t> out(mesh, deterministic, stream);
    grad_verts = out.grad_verts();
    const NmrBackward<scalar_t> p = {mesh.mesh<scalar_t>(), static_cast<scalar_t>(eps),
                                     face_index.const_data_ptr<int32_t>(), grad_mask.const_data_ptr<scalar_t>(),
                                     out.verts()};
    if (out.is_empty()) return;
    zero_async(work.pulls.visible, B * F, stream);
    list_missing_pixels<scalar_t>
        <<<warp_blocks(B * H), kTaskThreads, 0, stream>>>(p, work.pulls.rows, B, work.pulls.visible);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    list_missing_pixels<scalar_t><<<warp_blocks(B * W), kTaskThreads, 0, stream>>>(p, work.pulls.columns, B, nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    out.add_up(NmrGradient<scalar_t>{p, work.pulls});
  });
  return grad_verts;
}

}  // namespace dhpe

STABLE_TORCH_LIBRARY_IMPL(dhpe_fast, CUDA, m) {
  m.impl("_silhouette_nmr_backward", TORCH_BOX(&dhpe::silhouette_nmr_backward_cuda));
}
