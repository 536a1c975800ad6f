// All eigenpairs of a small dense symmetric matrix: Lanczos' projected problem, and tiny graphs.
#pragma once

#include <cstdint>
#include <vector>

namespace selfment::cpu {

struct SymmetricEigen {
  std::vector<double> values;   // (n,), descending
  std::vector<double> vectors;  // (n, n), row i belongs to values[i]
};

// `a` is (n, n), symmetric, finite. Householder tridiagonalisation, then implicit QL (Golub and Van
// Loan, Matrix Computations, 8.3); absolute errors of a few roundings of the largest eigenvalue.
SymmetricEigen symmetric_eigen(std::vector<double> a, int64_t n);

}  // namespace selfment::cpu
