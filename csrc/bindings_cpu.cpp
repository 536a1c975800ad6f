// `selfment._cpu`: registers the operations of params.h and releases the GIL. Addresses are
// integers, of memory that the caller has checked and keeps alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "bindings.h"
#include "params.h"

namespace py = pybind11;

namespace {

using selfment::Address, selfment::as_grids, selfment::as_sign, selfment::at, selfment::Grids,
    selfment::Released;

// The weights of a batch of graphs, in weighted mode.
struct Weights {
  explicit Weights(int64_t batch) : images(batch) {}
  std::vector<selfment::EdgeWeights> images;
};

std::vector<selfment::Graph> graphs(Address bits, const Weights* weights, int64_t batch, int64_t n,
                                    double eps) {
  std::vector<selfment::Graph> views;
  for (int64_t i = 0; i < batch; ++i)
    views.push_back({at<const uint64_t>(bits) + i * selfment::bits_size(n),
                     weights == nullptr ? nullptr : &weights->images[i], n, eps});
  return views;
}

// Python handles signals on its main thread alone, and other threads need not ask. They must not:
// see Released.
bool on_main_thread() {
  const auto threading = py::module_::import("threading");
  return threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident"));
}

bool interrupted() {
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

bool never() { return false; }

// Runs an operation without the GIL; an interruption leaves with the error that the signal raised.
template <class Operation>
auto run(int threads, const Operation& operation) {
  const selfment::Context context{threads, on_main_thread() ? interrupted : never};
  try {
    const Released released;
    return operation(context);
  } catch (const selfment::Interrupted&) {
    throw py::error_already_set();
  }
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Selfment's kernels for the CPU. Use the functions of `selfment`.";
  m.attr("__version__") = SELFMENT_VERSION;
  m.def("isa", &selfment::cpu::isa);
  selfment::cpu::isa();  // chosen now: a fork while another thread chooses would never end the
                         // choice
  m.attr("PEAK_TIE") = selfment::kPeakTie;
  m.attr("IPO_TIE") = selfment::kIpoTie;
  m.attr("DTYPES") = py::make_tuple("float16", "bfloat16", "float32", "float64");
  m.def("bits_size", &selfment::bits_size, py::arg("n"));

  py::class_<Weights>(m, "Weights")
      .def(py::init<int64_t>(), py::arg("batch"))
      .def_property_readonly("nbytes", [](const Weights& w) {
        int64_t bytes = 0;
        for (const auto& image : w.images) bytes += image.nbytes();
        return bytes;
      });

  m.def(
      "affinity",
      [](Address features, int dtype, int64_t batch, int64_t n, int64_t d, Address taus, double eps,
         Weights* weights, Address bits, Address degrees, int threads, Address undecided) {
        return run(threads, [&](const selfment::Context& context) {
          return selfment::cpu::affinity(
              {at<const void>(features), static_cast<selfment::Dtype>(dtype), batch, n, d,
               at<const double>(taus), eps, weights != nullptr, at<uint64_t>(bits),
               at<double>(degrees), weights == nullptr ? nullptr : weights->images.data(),
               at<int64_t>(undecided)},
              context);
        });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("taus"), py::arg("eps"), py::arg("weights").none(true), py::arg("bits"),
      py::arg("degrees"), py::arg("threads"), py::arg("undecided") = Address{0});

  m.def(
      "paint",
      [](Address bits, const Weights* weights, int64_t batch, int64_t n, double eps, Address taus,
         Address mask, Address painted_bits, Weights* painted_weights, Address painted_degrees,
         int threads) {
        run(threads, [&](const selfment::Context& context) {
          const auto views = graphs(bits, weights, batch, n, eps);
          selfment::cpu::paint(
              {views.data(), batch, at<const double>(taus), at<const bool>(mask),
               at<uint64_t>(painted_bits), at<double>(painted_degrees),
               painted_weights == nullptr ? nullptr : painted_weights->images.data()},
              context);
        });
      },
      py::arg("bits"), py::arg("weights").none(true), py::arg("batch"), py::arg("n"),
      py::arg("eps"), py::arg("taus"), py::arg("mask"), py::arg("painted_bits"),
      py::arg("painted_weights").none(true), py::arg("painted_degrees"), py::arg("threads"));

  m.def(
      "matvec",
      [](Address bits, const Weights* weights, int64_t batch, int64_t n, double eps, Address x,
         Address y, int64_t columns, int threads) {
        run(threads, [&](const selfment::Context& context) {
          const auto views = graphs(bits, weights, batch, n, eps);
          selfment::cpu::matvec({views.data(), batch, columns, at<const double>(x), at<double>(y)},
                                context);
        });
      },
      py::arg("bits"), py::arg("weights").none(true), py::arg("batch"), py::arg("n"),
      py::arg("eps"), py::arg("x"), py::arg("y"), py::arg("columns"), py::arg("threads"));

  m.def(
      "fiedler",
      [](Address bits, const Weights* weights, Address degrees, int64_t batch, int64_t n,
         double eps, int64_t k, bool lapack_sign, Address eigenvalues, Address vectors,
         Address gaps, Address residuals, Address iterations, int threads) {
        run(threads, [&](const selfment::Context& context) {
          const auto views = graphs(bits, weights, batch, n, eps);
          selfment::cpu::fiedler(
              {views.data(), at<const double>(degrees), batch, k, as_sign(lapack_sign),
               at<double>(eigenvalues), at<double>(vectors), at<double>(gaps),
               at<double>(residuals), at<int64_t>(iterations)},
              context);
        });
      },
      py::arg("bits"), py::arg("weights").none(true), py::arg("degrees"), py::arg("batch"),
      py::arg("n"), py::arg("eps"), py::arg("k"), py::arg("lapack_sign"), py::arg("eigenvalues"),
      py::arg("vectors"), py::arg("gaps"), py::arg("residuals"), py::arg("iterations"),
      py::arg("threads"));

  m.def(
      "components",
      [](Address fiedler, int64_t batch, int64_t n, const Grids& grids, bool corners, Address mask,
         Address seed, Address peaks, int threads) {
        const auto frames = as_grids(grids);
        run(threads, [&](const selfment::Context& context) {
          selfment::cpu::components({at<const double>(fiedler), batch, n, frames.data(),
                                     static_cast<int64_t>(frames.size()), corners, at<bool>(mask),
                                     at<int64_t>(seed), at<int64_t>(peaks)},
                                    context);
        });
      },
      py::arg("fiedler"), py::arg("batch"), py::arg("n"), py::arg("grids"), py::arg("corners"),
      py::arg("mask"), py::arg("seed"), py::arg("peaks"), py::arg("threads"));

  m.def(
      "ipo",
      [](Address features, int dtype, int64_t batch, int64_t n, int64_t d, int64_t iters,
         int64_t min_count, Address labels, Address steps, Address separation, int threads) {
        return run(threads, [&](const selfment::Context& context) {
          return selfment::cpu::ipo(
              {at<const void>(features), static_cast<selfment::Dtype>(dtype), batch, n, d, iters,
               min_count, at<bool>(labels), at<int64_t>(steps), at<double>(separation)},
              context);
        });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("iters"), py::arg("min_count"), py::arg("labels"), py::arg("steps"),
      py::arg("separation"), py::arg("threads"));

  m.def(
      "finish",
      [](Address eigenvalues, Address gaps, Address separation, Address fiedler, Address labels,
         int64_t batch, int64_t n, const Grids& grids, double min_confidence, Address confidence,
         Address rejected, Address mask, Address vectors, int threads) {
        const auto frames = as_grids(grids);
        run(threads, [&](const selfment::Context& context) {
          selfment::cpu::finish(
              {at<const double>(eigenvalues), at<const double>(gaps), at<const double>(separation),
               at<const double>(fiedler), at<const bool>(labels), batch, n, frames.data(),
               static_cast<int64_t>(frames.size()), min_confidence, at<double>(confidence),
               at<bool>(rejected), at<bool>(mask), at<float>(vectors)},
              context);
        });
      },
      py::arg("eigenvalues"), py::arg("gaps"), py::arg("separation"), py::arg("fiedler"),
      py::arg("labels"), py::arg("batch"), py::arg("n"), py::arg("grids"),
      py::arg("min_confidence"), py::arg("confidence"), py::arg("rejected"), py::arg("mask"),
      py::arg("vectors"), py::arg("threads"));

  m.def(
      "threshold",
      [](Address similarities, int64_t batch, int64_t m, Address taus, int threads) {
        run(threads, [&](const selfment::Context& context) {
          selfment::cpu::threshold({at<const double>(similarities), batch, m, at<double>(taus)},
                                   context);
        });
      },
      py::arg("similarities"), py::arg("batch"), py::arg("m"), py::arg("taus"), py::arg("threads"));
}
