// When Lanczos restarts and stops, for both twins. The recurrences are in cpu/lanczos.cpp.
#pragma once

#include <cstdint>

#include "params.h"

namespace selfment {

// The error of a unit vector y is at most residual / gap (Parlett, The Symmetric Eigenvalue
// Problem, 11.7), where the gap is the distance of its eigenvalue to the nearest other one.
inline constexpr double kVectorError = 1e-9;  // bound on that error
// A gap may be 0. Any vector of the eigenspace will do then, and the residual only has to be small.
inline constexpr double kResidualFloor = 1e-14;

// The stopping rule: true if a Ritz pair with this residual and this gap has converged.
SELFMENT_EVERYWHERE inline bool has_converged(double residual, double gap) {
  const double bound = kVectorError * gap;
  return residual <= (bound > kResidualFloor ? bound : kResidualFloor);
}

inline constexpr int64_t kBasis = 64;  // vectors of a basis, for few pairs; then Lanczos restarts
inline constexpr int64_t kMaxProducts = 4000;  // after these it stops without convergence
inline constexpr int64_t kDense = 48;          // up to this many patches take the whole spectrum
// A vector whose norm falls below this is rounding: the space is invariant.
inline constexpr double kBreakdown = 1e-13;

}  // namespace selfment
