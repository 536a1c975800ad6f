// Scratch memory, carved into arrays.
#pragma once

#include <cstdint>

namespace selfment::cuda {

// Hands out one array after another of a piece of memory, each aligned to 256 bytes. With a null
// pointer it only counts bytes: the addresses are void.
class Scratch {
 public:
  // Each array is made `copies` times, one copy after the other.
  explicit Scratch(void* memory, int64_t copies = 1)
      : memory_(static_cast<char*>(memory)), copies_(copies) {}

  // Points at the next array, of `count` items.
  template <class Item>
  void allocate(Item*& pointer, int64_t count) {
    pointer = reinterpret_cast<Item*>(memory_ + used_);
    used_ += (copies_ * count * static_cast<int64_t>(sizeof(Item)) + 255) / 256 * 256;
  }

  int64_t used() const { return used_; }  // bytes

 private:
  char* const memory_;
  const int64_t copies_;
  int64_t used_ = 0;
};

}  // namespace selfment::cuda
