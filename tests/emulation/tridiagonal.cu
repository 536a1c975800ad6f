// `tridiagonal SHARE` reads symmetric tridiagonal matrices (their size, diagonal and off-diagonal)
// until the end of its input. For each it prints the results of leading_pair: the two eigenvalues
// and the vector.
#include "cuda/tridiagonal.cuh"

#include <cstdlib>
#include <vector>

using namespace selfment::cuda;

namespace {

struct Args {
  const double *diagonal, *beside;
  int size;
  double share;
  double *values, *vector;
};

__global__ void lead(Args a) {
  auto& t = *reinterpret_cast<Tridiagonal*>(shared_memory());
  for (int i = static_cast<int>(threadIdx.x); i < a.size; i += kWarp) {
    t.diagonal[i] = a.diagonal[i];
    t.beside[i] = a.beside[i];
  }
  leading_pair(t, a.size, a.share, a.values, a.vector);
}

}  // namespace

int main(int count, char** arguments) {
  const double share = count > 1 ? std::atof(arguments[1]) : 0;
  int size = 0;
  while (std::scanf("%d", &size) == 1) {
    std::vector<double> diagonal(size), beside(size), values(2), vector(size);
    for (double& entry : diagonal)
      if (std::scanf("%lf", &entry) != 1) return 1;
    for (int i = 0; i + 1 < size; ++i)
      if (std::scanf("%lf", &beside[i]) != 1) return 1;
    launch("lead", lead, 1, kWarp, sizeof(Tridiagonal), nullptr,
           Args{diagonal.data(), beside.data(), size, share, values.data(), vector.data()});
    for (const double value : values) std::printf("%.17g ", value);
    for (const double entry : vector) std::printf("%.17g ", entry);
    std::printf("\n");
  }
  return 0;
}
