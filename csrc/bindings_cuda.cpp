// `selfment._cuda`: registers the CUDA twin of the operations of params.h. Addresses and streams
// are integers; memory is of the device and stays alive until its stream has passed the operation.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "bindings.h"
#include "cuda/platform.h"
#include "params.h"

namespace py = pybind11;

namespace {

using selfment::Address, selfment::as_grids, selfment::as_sign, selfment::at, selfment::Grids,
    selfment::Released;
using selfment::Dtype;

// Makes the device current, and at the end again the one that was so before, also where this fails.
// The runtime here is not torch's, but both ask the driver what is current in the thread, so that
// each sees what the other has done. Where nothing has used the device before, making it current
// again would take memory there: callers make the device current by torch, which does not.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    selfment::cuda::check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    const cudaError_t status = cudaSetDevice(device);
    if (status != cudaSuccess) cudaSetDevice(before_);
    selfment::cuda::check(status, "cudaSetDevice");
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Runs the operation on the device, without the GIL.
template <class Operation>
auto run(int device, const Operation& operation) {
  const Released released;
  const CurrentDevice current(device);
  return operation();
}

selfment::cuda::Graphs graphs(Address bits, Address weights, int64_t batch, int64_t n, double eps) {
  return {at<const uint64_t>(bits), at<const float>(weights), batch, n, eps};
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Selfment's kernels for CUDA. Use the functions of `selfment`.";
  m.attr("__version__") = SELFMENT_VERSION;
  m.attr("PEAK_TIE") = selfment::kPeakTie;
  m.attr("IPO_TIE") = selfment::kIpoTie;
  m.attr("DTYPES") = py::make_tuple("float16", "bfloat16", "float32", "float64");
  m.def("bits_size", &selfment::bits_size, py::arg("n"));
  m.def("weights_size", &selfment::cuda::weights_size, py::arg("n"));

  m.def(
      "affinity_scratch",
      [](int dtype, int64_t batch, int64_t n, int64_t d) {
        return selfment::cuda::affinity_scratch(static_cast<Dtype>(dtype), batch, n, d);
      },
      py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"));

  m.def(
      "affinity",
      [](Address features, int dtype, int64_t batch, int64_t n, int64_t d, Address taus, double eps,
         Address weights, Address bits, Address degrees, Address scratch, int device,
         Address stream) {
        run(device, [&] {
          selfment::cuda::affinity({at<const void>(features), static_cast<Dtype>(dtype), batch, n,
                                    d, at<const double>(taus), eps, at<uint64_t>(bits),
                                    at<float>(weights), at<double>(degrees), nullptr},
                                   {at<void>(scratch), at<void>(stream)});
        });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("taus"), py::arg("eps"), py::arg("weights"), py::arg("bits"), py::arg("degrees"),
      py::arg("scratch"), py::arg("device"), py::arg("stream"));

  m.def(
      "paint",
      [](Address bits, Address weights, int64_t batch, int64_t n, double eps, Address taus,
         Address mask, Address painted_bits, Address painted_weights, Address painted_degrees,
         int device, Address stream) {
        run(device, [&] {
          selfment::cuda::paint(
              {graphs(bits, weights, batch, n, eps), at<const double>(taus), at<const bool>(mask),
               at<uint64_t>(painted_bits), at<float>(painted_weights), at<double>(painted_degrees)},
              {nullptr, at<void>(stream)});
        });
      },
      py::arg("bits"), py::arg("weights"), py::arg("batch"), py::arg("n"), py::arg("eps"),
      py::arg("taus"), py::arg("mask"), py::arg("painted_bits"), py::arg("painted_weights"),
      py::arg("painted_degrees"), py::arg("device"), py::arg("stream"));

  m.def(
      "matvec",
      [](Address bits, Address weights, int64_t batch, int64_t n, double eps, Address x, Address y,
         int64_t columns, int device, Address stream) {
        run(device, [&] {
          selfment::cuda::matvec(
              {graphs(bits, weights, batch, n, eps), columns, at<const double>(x), at<double>(y)},
              {nullptr, at<void>(stream)});
        });
      },
      py::arg("bits"), py::arg("weights"), py::arg("batch"), py::arg("n"), py::arg("eps"),
      py::arg("x"), py::arg("y"), py::arg("columns"), py::arg("device"), py::arg("stream"));

  m.def(
      "fiedler_scratch",
      [](int64_t batch, int64_t n, int64_t k, bool weighted, bool lapack_sign, int device) {
        return run(device, [&] {
          return selfment::cuda::fiedler_scratch(batch, n, k, weighted, as_sign(lapack_sign));
        });
      },
      py::arg("batch"), py::arg("n"), py::arg("k"), py::arg("weighted"), py::arg("lapack_sign"),
      py::arg("device"));

  m.def(
      "fiedler",
      [](Address bits, Address weights, Address degrees, int64_t batch, int64_t n, double eps,
         int64_t k, bool lapack_sign, Address eigenvalues, Address vectors, Address gaps,
         Address residuals, Address iterations, Address scratch, int device, Address stream) {
        run(device, [&] {
          selfment::cuda::fiedler(
              {graphs(bits, weights, batch, n, eps), at<const double>(degrees), k,
               as_sign(lapack_sign), at<double>(eigenvalues), at<double>(vectors), at<double>(gaps),
               at<double>(residuals), at<int64_t>(iterations)},
              {at<void>(scratch), at<void>(stream)});
        });
      },
      py::arg("bits"), py::arg("weights"), py::arg("degrees"), py::arg("batch"), py::arg("n"),
      py::arg("eps"), py::arg("k"), py::arg("lapack_sign"), py::arg("eigenvalues"),
      py::arg("vectors"), py::arg("gaps"), py::arg("residuals"), py::arg("iterations"),
      py::arg("scratch"), py::arg("device"), py::arg("stream"));

  m.def("components_scratch", &selfment::cuda::components_scratch, py::arg("batch"), py::arg("n"),
        py::arg("frames"));

  m.def(
      "components",
      [](Address fiedler, int64_t batch, int64_t n, const Grids& grids, bool corners, Address mask,
         Address seed, Address peaks, Address scratch, int device, Address stream) {
        const auto frames = as_grids(grids);
        run(device, [&] {
          selfment::cuda::components({at<const double>(fiedler), batch, n, frames.data(),
                                      static_cast<int64_t>(frames.size()), corners, at<bool>(mask),
                                      at<int64_t>(seed), at<int64_t>(peaks)},
                                     {at<void>(scratch), at<void>(stream)});
        });
      },
      py::arg("fiedler"), py::arg("batch"), py::arg("n"), py::arg("grids"), py::arg("corners"),
      py::arg("mask"), py::arg("seed"), py::arg("peaks"), py::arg("scratch"), py::arg("device"),
      py::arg("stream"));

  m.def(
      "ipo_scratch",
      [](int dtype, int64_t batch, int64_t n, int64_t d, int device) {
        return run(device, [&] {
          return selfment::cuda::ipo_scratch(static_cast<Dtype>(dtype), batch, n, d);
        });
      },
      py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"), py::arg("device"));

  m.def(
      "ipo",
      [](Address features, int dtype, int64_t batch, int64_t n, int64_t d, int64_t iters,
         int64_t min_count, Address labels, Address steps, Address separation, Address scratch,
         int device, Address stream) {
        run(device, [&] {
          selfment::cuda::ipo(
              {at<const void>(features), static_cast<Dtype>(dtype), batch, n, d, iters, min_count,
               at<bool>(labels), at<int64_t>(steps), at<double>(separation)},
              nullptr, {at<void>(scratch), at<void>(stream)});
        });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("iters"), py::arg("min_count"), py::arg("labels"), py::arg("steps"),
      py::arg("separation"), py::arg("scratch"), py::arg("device"), py::arg("stream"));

  m.def("finish_scratch", &selfment::cuda::finish_scratch, py::arg("frames"));

  m.def(
      "finish",
      [](Address eigenvalues, Address gaps, Address separation, Address fiedler, Address labels,
         int64_t batch, int64_t n, const Grids& grids, double min_confidence, Address confidence,
         Address rejected, Address mask, Address vectors, Address scratch, int device,
         Address stream) {
        const auto frames = as_grids(grids);
        run(device, [&] {
          selfment::cuda::finish(
              {at<const double>(eigenvalues), at<const double>(gaps), at<const double>(separation),
               at<const double>(fiedler), at<const bool>(labels), batch, n, frames.data(),
               static_cast<int64_t>(frames.size()), min_confidence, at<double>(confidence),
               at<bool>(rejected), at<bool>(mask), at<float>(vectors)},
              {at<void>(scratch), at<void>(stream)});
        });
      },
      py::arg("eigenvalues"), py::arg("gaps"), py::arg("separation"), py::arg("fiedler"),
      py::arg("labels"), py::arg("batch"), py::arg("n"), py::arg("grids"),
      py::arg("min_confidence"), py::arg("confidence"), py::arg("rejected"), py::arg("mask"),
      py::arg("vectors"), py::arg("scratch"), py::arg("device"), py::arg("stream"));

  m.def(
      "label_scratch",
      [](int dtype, int64_t batch, int64_t n, int64_t d, bool weighted, int64_t frames,
         int device) {
        selfment::cuda::LabelParams p{};
        p.dtype = static_cast<Dtype>(dtype);
        p.batch = batch;
        p.n = n;
        p.d = d;
        p.weighted = weighted;
        p.frames = frames;
        return run(device, [&] { return selfment::cuda::label_scratch(p); });
      },
      py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"), py::arg("weighted"),
      py::arg("frames"), py::arg("device"));

  m.def(
      "label",
      [](Address features, int dtype, int64_t batch, int64_t n, int64_t d, Address taus, double eps,
         bool weighted, const Grids& grids, bool corners, int64_t iters, int64_t min_count,
         double min_confidence, Address mask, Address ncut_mask, Address fiedler,
         Address eigenvalues, Address gaps, Address residuals, Address seed, Address products,
         Address steps, Address peaks, Address separation, Address confidence, Address rejected,
         Address scratch, int device, Address stream) {
        const auto frames = as_grids(grids);
        run(device, [&] {
          selfment::cuda::label({at<const void>(features),
                                 static_cast<Dtype>(dtype),
                                 batch,
                                 n,
                                 d,
                                 at<const double>(taus),
                                 eps,
                                 weighted,
                                 frames.data(),
                                 static_cast<int64_t>(frames.size()),
                                 corners,
                                 iters,
                                 min_count,
                                 min_confidence,
                                 at<bool>(mask),
                                 at<bool>(ncut_mask),
                                 at<float>(fiedler),
                                 at<double>(eigenvalues),
                                 at<double>(gaps),
                                 at<double>(residuals),
                                 at<int64_t>(seed),
                                 at<int64_t>(products),
                                 at<int64_t>(steps),
                                 at<int64_t>(peaks),
                                 at<double>(separation),
                                 at<double>(confidence),
                                 at<bool>(rejected)},
                                {at<void>(scratch), at<void>(stream)});
        });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("taus"), py::arg("eps"), py::arg("weighted"), py::arg("grids"), py::arg("corners"),
      py::arg("iters"), py::arg("min_count"), py::arg("min_confidence"), py::arg("mask"),
      py::arg("ncut_mask"), py::arg("fiedler"), py::arg("eigenvalue"), py::arg("gap"),
      py::arg("residual"), py::arg("seed"), py::arg("lanczos_iters"), py::arg("ipo_iters"),
      py::arg("peaks"), py::arg("separation"), py::arg("confidence"), py::arg("rejected"),
      py::arg("scratch"), py::arg("device"), py::arg("stream"));

  m.def(
      "threshold",
      [](Address similarities, int64_t batch, int64_t m, Address taus, int device, Address stream) {
        run(device, [&] {
          selfment::cuda::threshold({at<const double>(similarities), batch, m, at<double>(taus)},
                                    {nullptr, at<void>(stream)});
        });
      },
      py::arg("similarities"), py::arg("batch"), py::arg("m"), py::arg("taus"), py::arg("device"),
      py::arg("stream"));
}
