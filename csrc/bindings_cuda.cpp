// `selfment._cuda`: registers the CUDA twins of the operations of params.h. Addresses and streams
// are integers; the memory is the device's and stays alive until its stream has passed the
// operation.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "bindings.h"
#include "cuda/platform.h"
#include "params.h"

namespace py = pybind11;

namespace {

using selfment::Address, selfment::as_grids, selfment::as_sign, selfment::at, selfment::Dtype,
    selfment::Grids, selfment::read_block, selfment::Released, selfment::set_grids;

// Makes the device current, and at the end the device that was current before, even on a failure.
// The CUDA runtime here is not torch's, but both ask the driver which device is current in the
// thread, so each sees what the other has done. If nothing has used the earlier device yet, making
// it current again would allocate memory there: callers make the device current through torch,
// which does not.
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

// Runs the operation on the device, without the GIL. If a block of rows could not be read, the
// error of Python is raised.
template <class Operation>
auto run(int device, const Operation& operation) {
  try {
    const Released released;
    const CurrentDevice current(device);
    return operation();
  } catch (const selfment::Interrupted&) {
    throw py::error_already_set();
  }
}

selfment::cuda::Graphs graphs(Address bits, Address weights, int64_t batch, int64_t n, double eps) {
  selfment::cuda::Graphs views{};
  views.bits = at<const uint64_t>(bits);
  views.weights = at<const float>(weights);
  views.batch = batch;
  views.n = n;
  views.eps = eps;
  return views;
}

selfment::cuda::Context on_stream(Address stream, Address scratch = 0) {
  selfment::cuda::Context context{};
  context.scratch = at<void>(scratch);
  context.stream = at<void>(stream);
  return context;
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
        selfment::cuda::AffinityParams p{};
        p.features = at<const void>(features);
        p.dtype = static_cast<Dtype>(dtype);
        p.batch = batch;
        p.n = n;
        p.d = d;
        p.taus = at<const double>(taus);
        p.eps = eps;
        p.bits = at<uint64_t>(bits);
        p.weights = at<float>(weights);
        p.degrees = at<double>(degrees);
        run(device, [&] { selfment::cuda::affinity(p, on_stream(stream, scratch)); });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("taus"), py::arg("eps"), py::arg("weights"), py::arg("bits"), py::arg("degrees"),
      py::arg("scratch"), py::arg("device"), py::arg("stream"));

  m.def(
      "paint",
      [](Address bits, Address weights, int64_t batch, int64_t n, double eps, Address taus,
         Address mask, Address painted_bits, Address painted_weights, Address painted_degrees,
         int device, Address stream) {
        selfment::cuda::PaintParams p{};
        p.graphs = graphs(bits, weights, batch, n, eps);
        p.taus = at<const double>(taus);
        p.mask = at<const bool>(mask);
        p.bits = at<uint64_t>(painted_bits);
        p.weights = at<float>(painted_weights);
        p.degrees = at<double>(painted_degrees);
        run(device, [&] { selfment::cuda::paint(p, on_stream(stream)); });
      },
      py::arg("bits"), py::arg("weights"), py::arg("batch"), py::arg("n"), py::arg("eps"),
      py::arg("taus"), py::arg("mask"), py::arg("painted_bits"), py::arg("painted_weights"),
      py::arg("painted_degrees"), py::arg("device"), py::arg("stream"));

  m.def(
      "matvec",
      [](Address bits, Address weights, int64_t batch, int64_t n, double eps, Address x, Address y,
         int64_t columns, int device, Address stream) {
        selfment::cuda::MatvecParams p{};
        p.graphs = graphs(bits, weights, batch, n, eps);
        p.columns = columns;
        p.x = at<const double>(x);
        p.y = at<double>(y);
        run(device, [&] { selfment::cuda::matvec(p, on_stream(stream)); });
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
        selfment::cuda::FiedlerParams p{};
        p.graphs = graphs(bits, weights, batch, n, eps);
        p.degrees = at<const double>(degrees);
        p.k = k;
        p.sign = as_sign(lapack_sign);
        p.eigenvalues = at<double>(eigenvalues);
        p.vectors = at<double>(vectors);
        p.gaps = at<double>(gaps);
        p.residuals = at<double>(residuals);
        p.iterations = at<int64_t>(iterations);
        run(device, [&] { selfment::cuda::fiedler(p, on_stream(stream, scratch)); });
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
        selfment::ComponentsParams p{};
        p.fiedler = at<const double>(fiedler);
        p.batch = batch;
        p.n = n;
        set_grids(p, frames);
        p.corners = corners;
        p.mask = at<bool>(mask);
        p.seed = at<int64_t>(seed);
        p.peaks = at<int64_t>(peaks);
        run(device, [&] { selfment::cuda::components(p, on_stream(stream, scratch)); });
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
         int device, Address stream, const py::object& read, int64_t block_rows) {
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
        run(device, [&] { selfment::cuda::ipo(p, nullptr, on_stream(stream, scratch)); });
      },
      py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("n"), py::arg("d"),
      py::arg("iters"), py::arg("min_count"), py::arg("labels"), py::arg("steps"),
      py::arg("separation"), py::arg("scratch"), py::arg("device"), py::arg("stream"),
      py::arg("read") = py::none(), py::arg("block_rows") = int64_t{0});

  m.def(
      "landmarks_scratch",
      [](int dtype, int64_t n, int64_t m, int64_t d) {
        return selfment::cuda::landmarks_scratch(static_cast<Dtype>(dtype), n, m, d);
      },
      py::arg("dtype"), py::arg("n"), py::arg("m"), py::arg("d"));

  m.def(
      "landmarks",
      [](Address features, Address landmarks, int dtype, int64_t n, int64_t m, int64_t d,
         double tau, double eps, Address x, int64_t columns, int64_t stride, Address means,
         Address sums, Address edges, Address totals, Address scratch, int device, Address stream) {
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
        run(device, [&] { selfment::cuda::landmarks(p, on_stream(stream, scratch)); });
      },
      py::arg("features"), py::arg("landmarks"), py::arg("dtype"), py::arg("n"), py::arg("m"),
      py::arg("d"), py::arg("tau"), py::arg("eps"), py::arg("x"), py::arg("columns"),
      py::arg("stride"), py::arg("means"), py::arg("sums"), py::arg("edges"), py::arg("totals"),
      py::arg("scratch"), py::arg("device"), py::arg("stream"));

  m.def("finish_scratch", &selfment::cuda::finish_scratch, py::arg("frames"));

  m.def(
      "finish",
      [](Address eigenvalues, Address gaps, Address separation, Address fiedler, Address labels,
         int64_t batch, int64_t n, const Grids& grids, double min_confidence, Address confidence,
         Address rejected, Address mask, Address vectors, Address scratch, int device,
         Address stream) {
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
        run(device, [&] { selfment::cuda::finish(p, on_stream(stream, scratch)); });
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
        selfment::cuda::LabelParams p{};
        p.features = at<const void>(features);
        p.dtype = static_cast<Dtype>(dtype);
        p.batch = batch;
        p.n = n;
        p.d = d;
        p.taus = at<const double>(taus);
        p.eps = eps;
        p.weighted = weighted;
        set_grids(p, frames);
        p.corners = corners;
        p.iters = iters;
        p.min_count = min_count;
        p.min_confidence = min_confidence;
        p.mask = at<bool>(mask);
        p.ncut_mask = at<bool>(ncut_mask);
        p.fiedler = at<float>(fiedler);
        p.eigenvalues = at<double>(eigenvalues);
        p.gaps = at<double>(gaps);
        p.residuals = at<double>(residuals);
        p.seed = at<int64_t>(seed);
        p.products = at<int64_t>(products);
        p.steps = at<int64_t>(steps);
        p.peaks = at<int64_t>(peaks);
        p.separation = at<double>(separation);
        p.confidence = at<double>(confidence);
        p.rejected = at<bool>(rejected);
        run(device, [&] { selfment::cuda::label(p, on_stream(stream, scratch)); });
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
        selfment::ThresholdParams p{};
        p.similarities = at<const double>(similarities);
        p.batch = batch;
        p.m = m;
        p.taus = at<double>(taus);
        run(device, [&] { selfment::cuda::threshold(p, on_stream(stream)); });
      },
      py::arg("similarities"), py::arg("batch"), py::arg("m"), py::arg("taus"), py::arg("device"),
      py::arg("stream"));
}
