// `selfment._cpu`: registers the operations of params.h, which run without the GIL. Addresses are
// integers; the caller has checked the memory behind them and keeps it alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "bindings.h"
#include "params.h"

namespace py = pybind11;

namespace {

using selfment::Address, selfment::as_grids, selfment::as_sign, selfment::at, selfment::Context,
    selfment::Dtype, selfment::EdgeWeights, selfment::Graph, selfment::Grids, selfment::read_block,
    selfment::Released, selfment::set_grids;

// The weights of a batch of graphs, in weighted mode.
struct Weights {
  explicit Weights(int64_t batch) : images(batch) {}
  std::vector<EdgeWeights> images;
};

// The images' weights, or nullptr in binary mode.
EdgeWeights* images_of(Weights* weights) {
  return weights == nullptr ? nullptr : weights->images.data();
}

// Views of the graphs of a batch.
std::vector<Graph> graphs(Address bits, const Weights* weights, int64_t batch, int64_t n,
                          double eps) {
  std::vector<Graph> views;
  for (int64_t i = 0; i < batch; ++i) {
    Graph graph{};
    graph.bits = at<const uint64_t>(bits) + i * selfment::bits_size(n);
    graph.weights = weights == nullptr ? nullptr : &weights->images[i];
    graph.n = n;
    graph.eps = eps;
    views.push_back(graph);
  }
  return views;
}

// Python handles signals on its main thread alone, so other threads need not ask for them. They
// must not: see Released.
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

// Runs an operation without the GIL. An interruption becomes the error that the signal raised.
template <class Operation>
auto run(int threads, const Operation& operation) {
  const Context context{threads, on_main_thread() ? interrupted : never};
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
  // Chooses the instruction set now: a fork while another thread chooses it would never end the
  // choice.
  selfment::cpu::isa();
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
        selfment::AffinityParams p{};
        p.features = at<const void>(features);
        p.dtype = static_cast<Dtype>(dtype);
        p.batch = batch;
        p.n = n;
        p.d = d;
        p.taus = at<const double>(taus);
        p.eps = eps;
        p.weighted = weights != nullptr;
        p.bits = at<uint64_t>(bits);
        p.degrees = at<double>(degrees);
        p.weights = images_of(weights);
        p.undecided = at<int64_t>(undecided);
        return run(threads,
                   [&](const Context& context) { return selfment::cpu::affinity(p, context); });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("taus"), py::arg("eps"), py::arg("weights").none(true), py::arg("bits"),
      py::arg("degrees"), py::arg("threads"), py::arg("undecided") = Address{0});

  m.def(
      "paint",
      [](Address bits, const Weights* weights, int64_t batch, int64_t n, double eps, Address taus,
         Address mask, Address painted_bits, Weights* painted_weights, Address painted_degrees,
         int threads) {
        const auto views = graphs(bits, weights, batch, n, eps);
        selfment::PaintParams p{};
        p.graphs = views.data();
        p.batch = batch;
        p.taus = at<const double>(taus);
        p.mask = at<const bool>(mask);
        p.bits = at<uint64_t>(painted_bits);
        p.degrees = at<double>(painted_degrees);
        p.weights = images_of(painted_weights);
        run(threads, [&](const Context& context) { selfment::cpu::paint(p, context); });
      },
      py::arg("bits"), py::arg("weights").none(true), py::arg("batch"), py::arg("n"),
      py::arg("eps"), py::arg("taus"), py::arg("mask"), py::arg("painted_bits"),
      py::arg("painted_weights").none(true), py::arg("painted_degrees"), py::arg("threads"));

  m.def(
      "matvec",
      [](Address bits, const Weights* weights, int64_t batch, int64_t n, double eps, Address x,
         Address y, int64_t columns, int threads) {
        const auto views = graphs(bits, weights, batch, n, eps);
        selfment::MatvecParams p{};
        p.graphs = views.data();
        p.batch = batch;
        p.columns = columns;
        p.x = at<const double>(x);
        p.y = at<double>(y);
        run(threads, [&](const Context& context) { selfment::cpu::matvec(p, context); });
      },
      py::arg("bits"), py::arg("weights").none(true), py::arg("batch"), py::arg("n"),
      py::arg("eps"), py::arg("x"), py::arg("y"), py::arg("columns"), py::arg("threads"));

  m.def(
      "fiedler",
      [](Address bits, const Weights* weights, Address degrees, int64_t batch, int64_t n,
         double eps, int64_t k, bool lapack_sign, Address eigenvalues, Address vectors,
         Address gaps, Address residuals, Address iterations, int threads) {
        const auto views = graphs(bits, weights, batch, n, eps);
        selfment::FiedlerParams p{};
        p.graphs = views.data();
        p.degrees = at<const double>(degrees);
        p.batch = batch;
        p.k = k;
        p.sign = as_sign(lapack_sign);
        p.eigenvalues = at<double>(eigenvalues);
        p.vectors = at<double>(vectors);
        p.gaps = at<double>(gaps);
        p.residuals = at<double>(residuals);
        p.iterations = at<int64_t>(iterations);
        run(threads, [&](const Context& context) { selfment::cpu::fiedler(p, context); });
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
        selfment::ComponentsParams p{};
        p.fiedler = at<const double>(fiedler);
        p.batch = batch;
        p.n = n;
        set_grids(p, frames);
        p.corners = corners;
        p.mask = at<bool>(mask);
        p.seed = at<int64_t>(seed);
        p.peaks = at<int64_t>(peaks);
        run(threads, [&](const Context& context) { selfment::cpu::components(p, context); });
      },
      py::arg("fiedler"), py::arg("batch"), py::arg("n"), py::arg("grids"), py::arg("corners"),
      py::arg("mask"), py::arg("seed"), py::arg("peaks"), py::arg("threads"));

  m.def(
      "ipo",
      [](Address features, int dtype, int64_t batch, int64_t n, int64_t d, int64_t iters,
         int64_t min_count, Address labels, Address steps, Address separation, int threads,
         const py::object& read, int64_t block_rows) {
        const selfment::RowBlocks blocks{read_block, read.ptr(), block_rows};
        selfment::IpoParams p{};
        p.features = at<const void>(features);
        p.blocks = read.is_none() ? nullptr : &blocks;
        p.dtype = static_cast<Dtype>(dtype);
        p.batch = batch;
        p.n = n;
        p.d = d;
        p.iters = iters;
        p.min_count = min_count;
        p.labels = at<bool>(labels);
        p.steps = at<int64_t>(steps);
        p.separation = at<double>(separation);
        return run(threads, [&](const Context& context) { return selfment::cpu::ipo(p, context); });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("iters"), py::arg("min_count"), py::arg("labels"), py::arg("steps"),
      py::arg("separation"), py::arg("threads"), py::arg("read") = py::none(),
      py::arg("block_rows") = int64_t{0});

  m.def(
      "landmarks",
      [](Address features, Address landmarks, int dtype, int64_t n, int64_t m, int64_t d,
         double tau, double eps, Address x, int64_t columns, int64_t stride, Address means,
         Address sums, Address edges, Address totals, int threads) {
        selfment::LandmarksParams p{};
        p.features = at<const void>(features);
        p.landmarks = at<const void>(landmarks);
        p.dtype = static_cast<Dtype>(dtype);
        p.n = n;
        p.m = m;
        p.d = d;
        p.tau = tau;
        p.eps = eps;
        p.x = at<const double>(x);
        p.columns = columns;
        p.stride = stride;
        p.means = at<double>(means);
        p.sums = at<double>(sums);
        p.edges = at<int64_t>(edges);
        p.totals = at<double>(totals);
        return run(threads,
                   [&](const Context& context) { return selfment::cpu::landmarks(p, context); });
      },
      py::arg("features"), py::arg("landmarks"), py::arg("dtype"), py::arg("n"), py::arg("m"),
      py::arg("d"), py::arg("tau"), py::arg("eps"), py::arg("x"), py::arg("columns"),
      py::arg("stride"), py::arg("means"), py::arg("sums"), py::arg("edges"), py::arg("totals"),
      py::arg("threads"));

  m.def(
      "finish",
      [](Address eigenvalues, Address gaps, Address separation, Address fiedler, Address labels,
         int64_t batch, int64_t n, const Grids& grids, double min_confidence, Address confidence,
         Address rejected, Address mask, Address vectors, int threads) {
        const auto frames = as_grids(grids);
        selfment::FinishParams p{};
        p.eigenvalues = at<const double>(eigenvalues);
        p.gaps = at<const double>(gaps);
        p.separation = at<const double>(separation);
        p.fiedler = at<const double>(fiedler);
        p.labels = at<const bool>(labels);
        p.batch = batch;
        p.n = n;
        set_grids(p, frames);
        p.min_confidence = min_confidence;
        p.confidence = at<double>(confidence);
        p.rejected = at<bool>(rejected);
        p.mask = at<bool>(mask);
        p.vectors = at<float>(vectors);
        run(threads, [&](const Context& context) { selfment::cpu::finish(p, context); });
      },
      py::arg("eigenvalues"), py::arg("gaps"), py::arg("separation"), py::arg("fiedler"),
      py::arg("labels"), py::arg("batch"), py::arg("n"), py::arg("grids"),
      py::arg("min_confidence"), py::arg("confidence"), py::arg("rejected"), py::arg("mask"),
      py::arg("vectors"), py::arg("threads"));

  m.def(
      "threshold",
      [](Address similarities, int64_t batch, int64_t m, Address taus, int threads) {
        selfment::ThresholdParams p{};
        p.similarities = at<const double>(similarities);
        p.batch = batch;
        p.m = m;
        p.taus = at<double>(taus);
        run(threads, [&](const Context& context) { selfment::cpu::threshold(p, context); });
      },
      py::arg("similarities"), py::arg("batch"), py::arg("m"), py::arg("taus"), py::arg("threads"));
}
