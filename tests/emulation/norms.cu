// `norms TYPE D FILE` reads rows of D numbers. For each it prints whether quick_length succeeds,
// and the results of quick_length and exact_length. `norms divide TYPE FILE` reads norms, each a
// double, and as many numbers; it divides all by all and prints how often `quick` succeeds, and how
// often its result, or that of the division, differs from the result in double.
#include "cuda/norms.cuh"

#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

using namespace selfment::cuda;

namespace {

template <class T>
struct Lengths {
  const T* rows;
  int64_t d;
  double *quick, *exact;
  bool* told;
};

template <class T>
__global__ void measure(Lengths<T> a) {
  const int lane = static_cast<int>(threadIdx.x);
  const T* x = a.rows + blockIdx.x * a.d;
  double quick = 0;
  const bool told = quick_length(x, a.d, lane, &quick);
  const double exact = exact_length(x, a.d, lane);
  if (lane > 0) return;
  a.told[blockIdx.x] = told;
  a.quick[blockIdx.x] = quick;
  a.exact[blockIdx.x] = exact;
}

template <class T>
std::vector<T> numbers(std::ifstream& file, size_t count) {
  std::vector<T> found(count);
  file.read(reinterpret_cast<char*>(found.data()), count * sizeof(T));
  return found;
}

template <class T>
void lengths(std::ifstream& file, size_t bytes, int64_t d) {
  const auto rows = numbers<T>(file, bytes / sizeof(T));
  const size_t n = rows.size() / d;
  std::vector<double> quick(n), exact(n);
  const auto told = std::make_unique<bool[]>(n);
  launch("measure", measure<T>, n, kWarp, 0, nullptr,
         Lengths<T>{rows.data(), d, quick.data(), exact.data(), told.get()});
  for (size_t i = 0; i < n; ++i) std::printf("%d %a %a\n", told[i], quick[i], exact[i]);
}

template <class T>
void divide(std::ifstream& file, size_t bytes) {
  const size_t n = bytes / (sizeof(double) + sizeof(T));
  const auto norms = numbers<double>(file, n);
  const auto elements = numbers<T>(file, n);
  int64_t told = 0, wrong = 0;
  for (const double norm : norms) {
    const Divisor<T> divided(norm);
    for (const T x : elements) {
      const auto expected = static_cast<float>(value(x) / norm);
      const auto is = [&](float f) { return f == expected || (f != f && expected != expected); };
      float quick = 0;
      const bool clear = divided.quick(x, &quick);
      told += clear;
      wrong += !is(divided(x)) || (clear && !is(quick));
    }
  }
  std::printf("%lld %lld\n", static_cast<long long>(told), static_cast<long long>(wrong));
}

template <class Body>
void with_type(const char* name, const Body& body) {
  if (std::strcmp(name, "float32") == 0) body(float{});
  else if (std::strcmp(name, "float16") == 0) body(selfment::Float16{});
  else body(selfment::BFloat16{});
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 1;
  std::ifstream file(arguments[3], std::ios::binary | std::ios::ate);
  const auto bytes = static_cast<size_t>(file.tellg());
  file.seekg(0);
  if (std::strcmp(arguments[1], "divide") == 0)
    with_type(arguments[2], [&](auto typed) { divide<decltype(typed)>(file, bytes); });
  else
    with_type(arguments[1],
              [&](auto typed) { lengths<decltype(typed)>(file, bytes, std::atoll(arguments[2])); });
  return 0;
}
