# SPDX-License-Identifier: Apache-2.0
# The plug-in's sources, for nvcc and for the host.
set(moec_cuda_sources
  cast.cu
  cufile.cu
  digest.cu
  ec_one_kernel.cu
  ec_rounds.cu
  ec_two_pass.cu
  expert_choice.cu
  expert_ffn.cu
  moec_cuda.cu
  permute.cu
  product_exact.cu
  product_fast.cu
  route_dispatch.cu
  route_topk.cu)
list(TRANSFORM moec_cuda_sources PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
