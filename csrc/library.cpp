// Every op's schema on one screen, and the Python module _C with the facts of this build.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>

#include "common/simd.h"
#include "lbs/lbs.h"
#include "raster/raster.h"

STABLE_TORCH_LIBRARY(dhpe_fast, m) {
  m.def(
      "lbs(Tensor pose, Tensor betas, Tensor v_template, Tensor shapedirs, Tensor posedirs, Tensor joint_template, "
      "Tensor joint_shapedirs, Tensor skin_joints, Tensor skin_weights, Tensor parents) "
      "-> (Tensor verts, Tensor joints, Tensor bent)");
  m.def(
      "_lbs_values(Tensor pose, Tensor betas, Tensor v_template, Tensor shapedirs, Tensor posedirs, "
      "Tensor joint_template, Tensor joint_shapedirs, Tensor skin_joints, Tensor skin_weights, Tensor parents) "
      "-> (Tensor verts, Tensor joints)");
  m.def(
      "_lbs_backward(Tensor grad_verts, Tensor grad_joints, Tensor bent, Tensor pose, Tensor betas, "
      "Tensor v_template, Tensor shapedirs, Tensor posedirs, Tensor joint_template, Tensor joint_shapedirs, "
      "Tensor skin_joints, Tensor skin_weights, Tensor parents) -> (Tensor grad_pose, Tensor grad_betas)");
  m.def(
      "rasterize(Tensor verts_px, Tensor faces, int height, int width, bool perspective, float? z_near, "
      "bool cull_backfaces) -> (Tensor bary, Tensor depth, Tensor face_index)");
  m.def(
      "_rasterize_backward(Tensor grad_bary, Tensor grad_depth, Tensor face_index, Tensor verts_px, Tensor faces, "
      "bool perspective, float? z_near, bool cull_backfaces, bool deterministic) -> Tensor");
  m.def(
      "silhouette_nmr(Tensor verts_px, Tensor faces, int height, int width, float? z_near, bool fill_back, float eps) "
      "-> (Tensor mask, Tensor face_index)");
  m.def(
      "_silhouette_nmr_backward(Tensor grad_mask, Tensor face_index, Tensor verts_px, Tensor faces, float eps, "
      "bool deterministic) -> Tensor");
  m.def("interpolate(Tensor attributes, Tensor faces, Tensor face_index, Tensor bary) -> Tensor");
  m.def(
      "_interpolate_backward(Tensor grad, Tensor attributes, Tensor faces, Tensor face_index, Tensor bary, "
      "bool of_attributes, bool of_bary) -> (Tensor grad_attributes, Tensor grad_bary)");
  m.def("visibility_gradient(Tensor image, Tensor face_index, Tensor verts_px, Tensor faces, float eps) -> Tensor");
  m.def(
      "_visibility_gradient_backward(Tensor grad, Tensor image, Tensor face_index, Tensor verts_px, Tensor faces, "
      "float eps, bool deterministic) -> Tensor");
  m.def(
      "silhouette_edge(Tensor verts_px, Tensor faces, int height, int width, float? z_near, bool fill_back) -> Tensor");
  m.def(
      "_silhouette_edge_backward(Tensor grad_mask, Tensor verts_px, Tensor faces, float? z_near, bool fill_back, "
      "bool deterministic) -> Tensor");
  m.def(
      "silhouette_soft(Tensor verts_px, Tensor faces, int height, int width, float? z_near, bool fill_back, "
      "float sigma) -> (Tensor mask, Tensor missed)");
  m.def(
      "_silhouette_soft_backward(Tensor grad_mask, Tensor missed, Tensor verts_px, Tensor faces, float? z_near, "
      "bool fill_back, float sigma, bool deterministic) -> Tensor");
  m.def(
      "newton_minimize(Tensor pose, Tensor betas, Tensor rotation, Tensor cam, Tensor joints, Tensor confidence, "
      "Tensor? intrinsics, Tensor? mask, Tensor[] hand, Tensor[] mesh, float[] weights, int iterations, "
      "float tolerance, bool race) -> (Tensor pose, Tensor betas, Tensor rotation, Tensor cam, Tensor energy, "
      "Tensor steps, Tensor status)");
  m.def("refine_mask(Tensor h, Tensor[] model, int image_size, int mode) -> Tensor");
  m.def(
      "refine_gradient(Tensor h, Tensor joints2d_px, Tensor? mask, Tensor[] slope, Tensor[] model, float[] weights, "
      "float feature_tau_px, int image_size, int mode, bool deterministic) -> (Tensor grad_h, Tensor terms)");
  m.def(
      "refine_descend(Tensor h, Tensor memory, Tensor rates, Tensor joints2d_px, Tensor? mask, Tensor[] slope, "
      "Tensor[] model, float[] weights, float feature_tau_px, int image_size, int mode, int iterations, int optimizer, "
      "float tolerance, bool evaluate_end, bool deterministic) -> (Tensor h, Tensor memory, Tensor energies)");
}

namespace dhpe {

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

namespace {

Isa best_isa() {
#if defined(DHPE_X86_SIMD)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* wish = std::getenv("DHPE_ISA");
  if (!wish) return best;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (isa <= best && std::strcmp(wish, isa_name(isa)) == 0) return isa;
  return best;
}

}  // namespace

Isa current_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

}  // namespace dhpe

PYBIND11_MODULE(_C, m) {
  m.doc() = "dhpe-fast's CPU ops (registered with torch as torch.ops.dhpe_fast.*) and the facts of this build.";
  m.def("cpu_isa", [] { return dhpe::isa_name(dhpe::current_isa()); }, "The instruction set the CPU kernels use.");
  m.attr("cuda_built") = DHPE_CUDA_BUILT != 0;
  m.attr("cuda_archs") = DHPE_CUDA_ARCHS;
  m.attr("max_image_size") = dhpe::kMaxImageSize;
  m.attr("max_joints") = dhpe::kMaxJoints;
  m.attr("max_coeffs") = dhpe::kMaxCoeffs;
  m.attr("max_coordinate_px") = dhpe::kMaxCoordinatePx;
  m.attr("max_depth") = dhpe::kMaxDepth;
  m.attr("min_z_near") = dhpe::kMinNear;
  m.attr("torch_abi") = "2.10";
#if defined(__VERSION__)
  m.attr("compiler") = __VERSION__;
#endif
}
