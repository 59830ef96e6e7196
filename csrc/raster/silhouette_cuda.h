// The GPU's silhouettes as functions of tensors, for host code that draws meshes on its way to something else; schemas
// in library.cpp. The host never waits: a stream that is being captured into a graph will do. CUDA only.
#pragma once

#include <optional>
#include <tuple>

#include "common/tensor_checks.h"

namespace dhpe {

std::tuple<Tensor, Tensor> silhouette_nmr_cuda(Tensor verts_px, Tensor faces, int64_t height, int64_t width,
                                               std::optional<double> z_near, bool fill_back, double eps);
Tensor silhouette_nmr_backward_cuda(Tensor grad_mask, Tensor face_index, Tensor verts_px, Tensor faces, double eps,
                                    bool deterministic);
Tensor silhouette_edge_cuda(Tensor verts_px, Tensor faces, int64_t height, int64_t width, std::optional<double> z_near,
                            bool fill_back);
Tensor silhouette_edge_backward_cuda(Tensor grad_mask, Tensor verts_px, Tensor faces, std::optional<double> z_near,
                                     bool fill_back, bool deterministic);

}  // namespace dhpe
