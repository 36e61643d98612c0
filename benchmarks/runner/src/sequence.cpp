#include "sequence.hpp"

#include <errno.h>
#include <time.h>

using litert::Bytes;
using litert::Call;
using litert::Error;
using litert::Model;
using litert::NowUs;

namespace {

constexpr double kLongestPeriodUs = 1e9;
const char* const kFound[] = {"boxes", "scores", "classes", "count"};

void SleepUntil(double us) {
  timespec until;
  until.tv_sec = static_cast<time_t>(us / 1e6);
  until.tv_nsec = static_cast<long>((us - until.tv_sec * 1e6) * 1e3);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
  }
}

}  // namespace

bool Calls::has(const std::string& role) const {
  for (const auto& line : plan_.all("call")) {
    if (line.at(0) == role) return true;
  }
  return false;
}

Call& Calls::operator[](const std::string& role) {
  for (const auto& line : plan_.all("call")) {
    if (line.at(0) != role) continue;
    auto& model = models_[line.at(1)];
    if (!model) model = std::make_unique<Model>(line.at(1), threads_, false);
    calls_.push_back(std::make_unique<Call>(*model, line.at(2)));
    return *calls_.back();
  }
  throw Error("plan: no line 'call " + role + "'");
}

Post::Post(Call& call, const Call& heads) : call_(call) {
  for (const char* head : kHeads) call_.BindInput(head, heads.output(head));
  for (const char* name : kFound) found_.emplace_back(call_.output(name).bytes);
}

double Post::operator()() {
  const double elapsed = call_.Run();
  for (size_t i = 0; i < found_.size(); ++i) call_.output(kFound[i]).Read(found_[i].data());
  return elapsed;
}

Sequence::Sequence(const Plan& plan)
    : plan_(plan), threads_(Threads(plan)), frames_(plan) {}

void Sequence::Prepare(const Images& images, long frame, const litert::Tensor& image,
                       Parts& parts) const {
  const double start = NowUs();
  images.Store(frame, image);
  parts.prepare += NowUs() - start;
}

Json Sequence::Run() {
  const long count = Whole(plan_.one("length").at(0), "length", 1, kMostRuns);
  const long warm_up = Whole(plan_.one("length").at(1), "warm-up", 0, count - 1);
  const double period_us = Real(plan_.one("period_us").at(0), "period_us", 0, kLongestPeriodUs);
  const bool records = !plan_.all("record").empty();
  Bytes recorded;
  std::vector<double> latency, invoke, schedule, prepare, late, age;
  for (auto* samples : {&latency, &invoke, &schedule, &prepare, &late, &age}) {
    samples->reserve(count - warm_up);
  }
  std::string extractors;  // "0" where Parts::whole, else "1"
  Parts sum;
  const double began = NowUs();
  double measured = began;
  for (long frame = 0; frame < count; ++frame) {
    const double due = began + frame * period_us;
    if (period_us > 0) SleepUntil(due);
    if (frame == warm_up) {
      Restart();
      measured = period_us > 0 ? due : NowUs();
    }
    const double start = NowUs();
    const Parts parts = Frame(frame);
    const double end = NowUs();
    if (records) Record(recorded);
    if (frame < warm_up) continue;
    if (period_us > 0) late.push_back(start - due);
    latency.push_back(end - start - parts.prepare);
    invoke.push_back(parts.extract + parts.memory + parts.post + parts.update + parts.policy);
    schedule.push_back(parts.schedule);
    prepare.push_back(parts.prepare);
    age.push_back(parts.age);
    extractors += parts.whole ? '0' : '1';
    sum.extract += parts.extract;
    sum.memory += parts.memory;
    sum.post += parts.post;
    sum.update += parts.update;
    sum.policy += parts.policy;
  }
  const double elapsed = NowUs() - measured;
  if (records) WriteFile(plan_.one("record").at(0), recorded.data(), recorded.size());
  Json means, json;
  const double frames = latency.size();
  means.Number("extract", sum.extract / frames).Number("memory", sum.memory / frames);
  means.Number("post", sum.post / frames).Number("update", sum.update / frames);
  means.Number("policy", sum.policy / frames);
  json.Numbers("latency_us", latency).Numbers("invoke_us", invoke);
  json.Numbers("schedule_us", schedule).Numbers("prepare_us", prepare).Numbers("late_us", late);
  json.Numbers("memory_age_frames", age).Text("extractors", extractors);
  json.Object("mean_us", means);
  Finish(json);
  return json.Number("elapsed_us", elapsed);
}
