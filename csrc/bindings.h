// The two native modules share this: addresses as integers, grids, the release of the GIL, and rows
// that Python reads block by block.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "params.h"

namespace selfment {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using Grids = std::vector<std::pair<int64_t, int64_t>>;

inline std::vector<Grid> as_grids(const Grids& sides) {
  std::vector<Grid> grids;
  for (const auto& [h, w] : sides) grids.push_back({h, w});
  return grids;
}

// Points the parameters at the grids, which must outlive them.
template <class Params>
void set_grids(Params& p, const std::vector<Grid>& grids) {
  p.grids = grids.data();
  p.frames = static_cast<int64_t>(grids.size());
}

inline Sign as_sign(bool lapack) { return lapack ? Sign::kLapack : Sign::kPeak; }

// Releases the GIL for as long as the object lives.
//
// A daemon thread may want the GIL back after the interpreter has ended. Python up to 3.13 then
// ends the thread by an exception, which must not pass through frames that catch everything, such
// as ours and torch's. The thread waits for the end of the process instead; newer versions of
// Python make it wait themselves.
class Released {
 public:
  Released() : thread_(PyEval_SaveThread()) {}
  ~Released() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* thread_;
};

// Calls the Python function `source` with the index of a block; it returns an address. An error
// stays set, and ends the operation like an interruption.
inline const void* read_block(void* source, int64_t index) {
  const PyGILState_STATE state = PyGILState_Ensure();
  PyObject* address =
      PyObject_CallFunction(static_cast<PyObject*>(source), "L", static_cast<long long>(index));
  const void* rows = address == nullptr ? nullptr : PyLong_AsVoidPtr(address);
  Py_XDECREF(address);
  PyGILState_Release(state);
  return rows;
}

}  // namespace selfment
