// One graph by itself: its latency, and whether it computes what was recorded.

#include <cmath>
#include <cstring>
#include <memory>

#include "plan.hpp"

using litert::Bytes;
using litert::Call;
using litert::Error;
using litert::Model;
using litert::Tensor;

namespace {

// The call of a line `graph FILE SIGNATURE`, with the inputs of the plan's `set` lines. Inputs that
// are not set get the same pseudo-random bytes everywhere (zeros if float: random bits are not
// numbers).
Call Load(const Model& model, const Plan::Line& line, const Plan& plan) {
  Call call(model, line.at(1) == "-" ? "" : line.at(1));
  uint32_t seed = 12345;
  for (const Tensor& tensor : call.inputs()) {
    Bytes data(tensor.bytes);
    if (tensor.type != litert::kFloat32) {
      for (unsigned char& byte : data) byte = (seed = seed * 1664525u + 1013904223u) >> 24;
    }
    tensor.Write(data.data());
  }
  for (const Plan::Line& set : plan.all("set")) {
    if (set.at(0) != line.at(0) + ":" + line.at(1)) continue;
    const Tensor& tensor = call.input(set.at(1));
    tensor.Write(ReadFile(set.at(2), tensor.bytes).data());
  }
  return call;
}

// Elements that differ from the recorded ones, those of integers that differ by one step, and by
// how much at most: in steps for integers, relative to the largest recorded magnitude (at least 1)
// for floats.
Json Compare(const Tensor& tensor, const Bytes& actual, const Bytes& expected) {
  size_t elements = 0, different = 0, by_one = 0;
  double largest = 0.0;
  if (tensor.type == litert::kFloat32) {
    elements = actual.size() / sizeof(float);
    double magnitude = 1.0;
    for (size_t i = 0; i < elements; ++i) {
      float a, e;
      memcpy(&a, &actual[4 * i], 4);
      memcpy(&e, &expected[4 * i], 4);
      if (memcmp(&a, &e, 4) == 0) continue;
      ++different;
      magnitude = std::fmax(magnitude, std::fabs(e));
      const double distance = std::fabs(static_cast<double>(a) - e);
      largest = std::isfinite(distance) ? std::fmax(largest, distance) : HUGE_VAL;
    }
    largest /= magnitude;
  } else {
    elements = actual.size() / tensor.element();
    for (size_t i = 0; i < elements; ++i) {
      const int distance = static_cast<int8_t>(actual[i]) - static_cast<int8_t>(expected[i]);
      different += distance != 0;
      by_one += std::abs(distance) == 1;
      largest = std::fmax(largest, std::abs(distance));
    }
  }
  Json json;
  json.Text("tensor", tensor.name).Number("elements", elements).Number("different", different);
  json.Number("by_one", by_one);
  // Written with all digits: a difference of 1e-7 is not none.
  char text[32];
  snprintf(text, sizeof text, "%.9g", largest);
  return json.Text("largest", text);
}

}  // namespace

Json MeasureGraph(const Plan& plan) {
  const long runs = Whole(plan.one("runs").at(0), "runs", 1, kMostRuns);
  const long warm_up = Whole(plan.one("warm_up").at(0), "warm_up", 0, kMostRuns);
  const bool profile = !plan.all("profile").empty();
  const double start = litert::NowUs();
  const Plan::Line& line = plan.one("graph");
  const Model model(line.at(0), Threads(plan), profile);
  const Call call = Load(model, line, plan);
  Json json;
  json.Flag("fully_accelerated", model.fully_accelerated());
  json.Number("init_us", litert::NowUs() - start);
  const double first = call.Run();
  json.Number("first_us", first);
  for (long i = 1; i < warm_up; ++i) call.Run();
  if (profile) model.StartProfile();
  std::vector<double> samples(runs);
  for (double& sample : samples) sample = call.Run();
  if (profile) json.Text("profile", model.StopProfile());
  return json.Numbers("latency_us", samples);
}

Json CheckGoldens(const Plan& plan) {
  const long threads = Threads(plan);
  std::map<std::string, std::unique_ptr<Model>> models;
  std::vector<Json> rows;
  for (const Plan::Line& line : plan.all("golden")) {
    auto& shared = models[line.at(0)];  // a file of many calls is compiled once
    if (!shared) shared = std::make_unique<Model>(line.at(0), threads, false);
    const Model& model = *shared;
    const Call call = Load(model, line, plan);
    call.Run();
    for (const Plan::Line& expect : plan.all("expect")) {
      if (expect.at(0) != line.at(0) + ":" + line.at(1)) continue;
      const Tensor& tensor = call.output(expect.at(1));
      Json row = Compare(tensor, tensor.Read(), ReadFile(expect.at(2), tensor.bytes));
      row.Text("graph", line.at(0)).Text("signature", line.at(1));
      rows.push_back(row.Flag("fully_accelerated", model.fully_accelerated()));
    }
  }
  Json json;
  return json.Objects("goldens", rows);
}
