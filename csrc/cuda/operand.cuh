// The rows of one side of the pairs: the features, and the half-precision rows that the tensor
// cores multiply in their place.
#pragma once

#include "platform.h"
#include "scratch.h"

namespace selfment::cuda {

// Half-precision rows, of which row i times scales[i] is about the rounded row i of the features.
struct Operand {
  const uint16_t* rows;  // (n, stride)
  int64_t n, stride;
  float* scales;  // (n,)
  float* errors;  // (n,), the norm of the difference, or what stands for an error

  // Returns the `count` rows from `first` on.
  __device__ Operand part(int64_t first, int64_t count) const {
    return {rows + first * stride, count, stride, scales + first, errors + first};
  }
};

struct Side {
  const void* features;  // (operand.n, d), aligned to 16 bytes
  int64_t d;
  double* norms;   // (operand.n,)
  uint16_t* copy;  // the operand's rows, unless they are the features themselves
  Operand operand;

  // Returns true if the operand is of bfloat16, and not of float16.
  bool is_bfloat16(Dtype dtype) const { return copy == nullptr && dtype == Dtype::kBFloat16; }
};

// Returns the side of n rows of features, with arrays in scratch memory; `norms` are allocated too
// if they are nullptr.
Side make_side(const void* features, Dtype dtype, int64_t n, int64_t d, double* norms,
               Scratch& memory);

// Computes the norms and the operand of the rows. `degrees`, (n,), become 0, or NaN if the row is
// not finite; nullptr if they are not wanted.
void prepare_side(const Side& side, Dtype dtype, double* degrees, cudaStream_t stream);

}  // namespace selfment::cuda
