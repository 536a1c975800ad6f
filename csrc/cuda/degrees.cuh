// The degrees of a graph, for the operations that make one.
#pragma once

#include "platform.h"

namespace selfment::cuda {

// degrees (batch, n) += the row sums of A. Before, a degree is 0, or NaN if its row is not finite.
void add_degrees(const Graphs& graphs, double* degrees, cudaStream_t stream);

}  // namespace selfment::cuda
