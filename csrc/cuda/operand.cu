// Makes the operand of rows: the features themselves if they are of half precision, else the
// rounded rows rounded once more.
#include "operand.cuh"

#include "norms.cuh"
#include "tile_edges.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;

struct Args {
  Side side;
  double* degrees;
};

// Makes the norm and the operand of a row, by a warp.
template <class T>
__global__ void prepare(Args a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp, d = a.side.d;
  const Operand& operand = a.side.operand;
  if (row >= operand.n) return;
  const T* x = static_cast<const T*>(a.side.features) + row * d;
  const double length = warp_length(x, d, lane), norm = norm_of(length);
  float error = 0;
  if (a.side.copy != nullptr) {
    const Divisor<T> divided(norm);
    uint16_t* copy = a.side.copy + row * operand.stride;
    for (int64_t k = lane; k < operand.stride; k += kWarp) {
      const float f = k < d ? divided(x[k]) : 0.0f;
      const uint16_t half = isfinite(f) ? to_half(f) : uint16_t{0};
      const float rest = f - to_float(Float16{half});  // exact
      copy[k] = half;
      error += rest * rest;
    }
    // The factor rounds up: it covers e_i e_j, which |q_i| <= 1 + e_i brings in, and the sum's
    // error.
    error = sqrtf(warp_sum(error)) * (1.002f + static_cast<float>(d) * 0x1p-29f);
  } else if (norm > 1e15) {
    error = kOverflows;
  }
  if (lane > 0) return;
  a.side.norms[row] = norm;
  if (a.degrees != nullptr) a.degrees[row] = isfinite(norm) ? 0 : NAN;
  operand.scales[row] = a.side.copy != nullptr ? 1.0f : 1 / static_cast<float>(norm);
  operand.errors[row] = !isfinite(norm) ? kNotFinite : length == 0 ? kZeroRow : error;
}

// True if the operand has to be a copy: the features' own rows can be the operand only if they are
// of half precision and all their pieces are aligned.
bool copies(Dtype dtype, int64_t d) {
  return (dtype != Dtype::kFloat16 && dtype != Dtype::kBFloat16) || d % kPiece != 0;
}

}  // namespace

Side make_side(const void* features, Dtype dtype, int64_t n, int64_t d, double* norms,
               Scratch& memory) {
  Side side{features, d, norms, nullptr, {}};
  Operand& operand = side.operand;
  operand.n = n;
  operand.stride = d;
  memory.allocate(operand.scales, n);
  memory.allocate(operand.errors, n);
  if (norms == nullptr) memory.allocate(side.norms, n);
  operand.rows = static_cast<const uint16_t*>(features);
  if (copies(dtype, d)) {
    operand.stride = (d + kPiece - 1) / kPiece * kPiece;
    memory.allocate(side.copy, n * operand.stride);
    operand.rows = side.copy;
  }
  return side;
}

void prepare_side(const Side& side, Dtype dtype, double* degrees, cudaStream_t stream) {
  const Args a{side, degrees};
  with_dtype(dtype, [&](auto* typed) {
    using T = std::decay_t<decltype(*typed)>;
    const int64_t blocks = (side.operand.n * kWarp + kThreads - 1) / kThreads;
    launch("operand: prepare", prepare<T>, blocks, kThreads, 0, stream, a);
  });
}

}  // namespace selfment::cuda
