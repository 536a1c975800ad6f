// All eigenpairs of a small dense symmetric matrix: Lanczos' projected problem, and tiny graphs.
#pragma once

#include <cstdint>
#include <vector>

namespace selfment::cpu {

struct SymmetricEigen {
  std::vector<double> values;   // (n,), descending
  std::vector<double> vectors;  // (n, n), row i belongs to values[i]
};

// Solves for `a`, (n, n), symmetric and finite: by Householder tridiagonalisation, then implicit QL
// (Golub and Van Loan, Matrix Computations, 8.3). Absolute errors are a few roundings of the
// largest eigenvalue.
SymmetricEigen symmetric_eigen(std::vector<double> a, int64_t n);

}  // namespace selfment::cpu
