// The arguments of the kernels that make the affinity graph.
#pragma once

#include "operand.cuh"
#include "pair_list.cuh"

namespace selfment::cuda {

struct AffinityArgs {
  AffinityParams p;
  Side side;  // the rows of all images
  PairList undecided;
  float margin;  // what the margins of all pairs have in common, except for tau's share
  int64_t words, tiles, blocks;
  int64_t weights_each;  // floats of an image
};

}  // namespace selfment::cuda
