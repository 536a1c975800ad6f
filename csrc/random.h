// The numbers that start vectors are made of, for both twins.
#pragma once

#include <cstdint>

#include "params.h"

namespace selfment {

// Number `index` of a fixed sequence in [-1, 1): splitmix64 (Steele, Lea, Flood, 2014) of seed 1.
SELFMENT_EVERYWHERE inline double random_number(int64_t index) {
  uint64_t z = 1 + (static_cast<uint64_t>(index) + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-52 - 1;
}

}  // namespace selfment
