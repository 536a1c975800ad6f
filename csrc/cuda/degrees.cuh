// The degrees of a graph, for the operations that make one.
#pragma once

#include "platform.h"

namespace selfment::cuda {

// degrees (batch, n) += the row sums of A. They are 0 before, or NaN where a row is not finite.
void add_degrees(const Graphs& graphs, double* degrees, cudaStream_t stream);

}  // namespace selfment::cuda
