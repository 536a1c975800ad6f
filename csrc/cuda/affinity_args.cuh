// The arguments of the kernels that make the affinity graph.
#pragma once

#include "pair_list.cuh"

namespace selfment::cuda {

struct AffinityArgs {
  AffinityParams p;
  const uint16_t* operand;  // (batch, n, stride)
  int64_t stride;
  float* scales;   // (batch, n), operand row * scale is about the rounded row
  float* errors;   // (batch, n), the norm of the difference, or what stands for an error
  uint16_t* copy;  // the operand, unless it is the features themselves
  PairList undecided;
  float margin;  // what the margins of all pairs have in common, except for tau's share
  int64_t words, tiles, blocks;
  int64_t weights_each;  // floats of an image
};

}  // namespace selfment::cuda
