// The interleaved detector on a sequence of prepared frames: the same calls, state and decisions as
// memvid_tf/runtime/{runners,asynchronous,schedules}.py, whose comments say why they are so.

#include <time.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "plan.hpp"

using litert::Bytes;
using litert::Call;
using litert::Error;
using litert::Model;
using litert::NowUs;
using litert::Tensor;

namespace {

using State = std::vector<Bytes>;
using SharedState = std::shared_ptr<const State>;  // never changed, only replaced

// What every part of a run must know.
struct Network {
  const Plan& plan;
  int threads;
  std::vector<Plan::Line> state;  // NAME INPUT OUTPUT INITIAL, in the manifest's order
  State initial;
  bool f0_updates, f1_updates;

  explicit Network(const Plan& p) : plan(p), state(p.all("state")) {
    threads = Whole(p.one("threads").at(0), "threads");
    f0_updates = Whole(p.one("updates_state").at(0), "updates_state") != 0;
    f1_updates = Whole(p.one("updates_state").at(1), "updates_state") != 0;
    for (const auto& line : state) initial.push_back(ReadFile(line.at(3)));
  }
};

// Models of one thread: a file that two calls share is compiled once.
class Calls {
 public:
  Calls(const Network& network, int threads) : network_(network), threads_(threads) {}

  const Call& operator[](const std::string& name) {
    for (const auto& line : network_.plan.all("call")) {
      if (line.at(0) != name) continue;
      auto& model = models_[line.at(1)];
      if (!model) model = std::make_unique<Model>(line.at(1), threads_, false);
      calls_.push_back(std::make_unique<Call>(*model, line.at(2)));
      return *calls_.back();
    }
    throw Error("plan: no line 'call " + name + "'");
  }

 private:
  const Network& network_;
  int threads_;
  std::map<std::string, std::unique_ptr<Model>> models_;
  std::vector<std::unique_ptr<Call>> calls_;
};

void WriteState(const Network& network, const Call& call, const State& state,
                const std::string& suffix = "") {
  for (size_t i = 0; i < state.size(); ++i) {
    const Tensor& tensor = call.input(network.state[i].at(1) + suffix);
    if (tensor.bytes != state[i].size()) throw Error("plan: state " + tensor.name + " has " +
        std::to_string(state[i].size()) + " bytes, wanted " + std::to_string(tensor.bytes));
    tensor.Write(state[i].data());
  }
}

State ReadState(const Network& network, const Call& call) {
  State state;
  for (const auto& line : network.state) state.push_back(call.output(line.at(2)).Read());
  return state;
}

// Features go from the extractor to the memory as stored.
void PassFeatures(const Call& from, const Call& to) {
  from.output("features").CopyTo(to.input("features"));
}

// schedules.py: FixedSchedule, DueSchedule and AdaptiveSchedule.
class Schedule {
 public:
  Schedule(const Network& network, Calls& calls, bool asynchronous)
      : network_(network), due_(asynchronous) {
    const auto& words = network.plan.one("schedule");
    adaptive_ = words.at(1) == "adaptive";
    tau_ = Whole(words.at(2), "tau");  // -1: f1 alone, or no bound for the policy
    if (!adaptive_) return;
    policy_ = &calls["policy"];
    const auto& policy = network.plan.one("policy");  // OBSERVES F0_INDEX F1_INDEX ZERO_ONE_FILE
    wants_candidate_ = policy.at(0) == "candidate";
    q_index_[0] = Whole(policy.at(1), "q index");
    q_index_[1] = Whole(policy.at(2), "q index");
    levels_ = ReadFile(policy.at(3));
    const size_t element = levels_.size() / 2;
    eta_.assign(policy_->input("eta").bytes / element, 0);
  }

  bool wants_candidate() const { return wants_candidate_; }

  bool PicksF0(long frame) {
    frame_ = frame;
    if (adaptive_) return frame == 0 || (tau_ >= 0 && since_f0_ >= tau_) || prefers_f0_;
    if (due_) return frame >= next_;
    return tau_ >= 0 && frame % (tau_ + 1) == 0;
  }

  // Returns the time that the policy took.
  double Observe(bool f0, const State& after, const State& before) {
    if (f0) next_ = frame_ + tau_ + 1;
    if (!adaptive_) return 0.0;
    memmove(eta_.data() + 1, eta_.data(), eta_.size() - 1);
    eta_[0] = !f0;
    since_f0_ = f0 ? 0 : since_f0_ + 1;
    const size_t element = levels_.size() / 2;
    Bytes stored(eta_.size() * element);
    for (size_t i = 0; i < eta_.size(); ++i) {
      memcpy(&stored[i * element], &levels_[eta_[i] * element], element);
    }
    WriteState(network_, *policy_, after);
    WriteState(network_, *policy_, before, "_before");
    policy_->input("eta").Write(stored.data());
    const double elapsed = policy_->Run();
    // One scale for both values: what is stored compares as what it means.
    const Tensor& q = policy_->output("q_values");
    const Bytes values = q.Read();
    prefers_f0_ = Value(q, values, q_index_[0]) >= Value(q, values, q_index_[1]);
    return elapsed;
  }

 private:
  static double Value(const Tensor& tensor, const Bytes& values, long index) {
    if (tensor.type == litert::kInt8) return static_cast<int8_t>(values.at(index));
    float value;
    memcpy(&value, &values.at(4 * index), 4);
    return value;
  }

  const Network& network_;
  const bool due_;
  bool adaptive_, wants_candidate_ = false, prefers_f0_ = true;
  long tau_, frame_ = 0, next_ = 0, since_f0_ = 0, q_index_[2] = {0, 1};
  const Call* policy_ = nullptr;
  Bytes levels_, eta_;
};

// The recorded frames, again and again.
struct Frames {
  size_t count;
  Bytes f0, f1;

  explicit Frames(const Plan& plan) {
    const auto& words = plan.one("frames");  // COUNT F0_FILE F1_FILE
    count = Whole(words.at(0), "frames");
    f0 = ReadFile(words.at(1));
    f1 = ReadFile(words.at(2));
    if (count < 1 || f0.size() % count || f1.size() % count) {
      throw Error("plan: " + words.at(1) + " and " + words.at(2) + " do not hold " +
                  words.at(0) + " frames of one size");
    }
  }

  const unsigned char* image(bool large, long frame) const {
    const Bytes& images = large ? f0 : f1;
    return &images[frame % count * (images.size() / count)];
  }
};

// asynchronous.py: f0 and the memory's update, in a thread that waits for work.
class Worker {
 public:
  struct Memory {
    State state;
    long frame;
    double update_us;
  };

  explicit Worker(const Network& network)
      : network_(network), calls_(network, 1), f0_(calls_["f0"]), update_(calls_["update"]) {}

  ~Worker() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  // In the calling thread; only while nothing is submitted.
  Memory Update(const unsigned char* image, const State& state, long frame) {
    const double start = NowUs();
    f0_.input("image").Write(image);
    f0_.Run();
    PassFeatures(f0_, update_);
    WriteState(network_, update_, state);
    update_.Run();
    return {ReadState(network_, update_), frame, NowUs() - start};
  }

  bool busy() const { return busy_; }

  void Submit(const unsigned char* image, const State& state, long frame) {
    if (!thread_.joinable()) thread_ = std::thread(&Worker::Loop, this);
    busy_ = true;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      image_ = image;
      state_ = state;
      frame_ = frame;
    }
    wake_.notify_one();
  }

  // The memory that was submitted last, if it is ready.
  std::optional<Memory> Collect() {
    if (!busy_ || !done_.exchange(false, std::memory_order_acquire)) return std::nullopt;
    busy_ = false;
    if (failure_) std::rethrow_exception(failure_);
    return std::move(result_);
  }

 private:
  void Loop() {
    while (true) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || image_ != nullptr; });
      if (image_ == nullptr) return;
      const unsigned char* image = image_;
      image_ = nullptr;
      const State state = std::move(state_);
      const long frame = frame_;
      lock.unlock();
      try {
        result_ = Update(image, state, frame);
      } catch (const Error&) {
        failure_ = std::current_exception();
      }
      done_.store(true, std::memory_order_release);
    }
  }

  const Network& network_;
  Calls calls_;
  const Call &f0_, &update_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false, busy_ = false;  // busy_ belongs to the calling thread
  const unsigned char* image_ = nullptr;
  State state_;
  long frame_ = 0;
  std::atomic<bool> done_{false};
  Memory result_{};
  std::exception_ptr failure_;
};

// Samples of every frame after the warm-up, and of every update.
struct Samples {
  std::vector<double> latency, invoke, schedule, late, age, update, update_frame;
  std::string extractors;  // "0" where f0 began on that frame, else "1"
};

class Run {
 public:
  explicit Run(const Plan& plan)
      : network_(plan),
        frames_(plan),
        asynchronous_(plan.one("schedule").at(0) == "async"),
        calls_(network_, network_.threads),
        schedule_(network_, calls_, asynchronous_),
        f1_(calls_["f1"]),
        step_(calls_["step"]),
        post_(calls_["post"]) {
    if (asynchronous_) {
      worker_ = std::make_unique<Worker>(network_);
    } else {
      f0_ = &calls_["f0"];
    }
    record_ = !plan.all("record").empty();
  }

  Json operator()() {
    const Plan& plan = network_.plan;
    const long count = Whole(plan.one("length").at(0), "length");
    const long warm_up = Whole(plan.one("length").at(1), "warm-up");
    const double period_us = std::stod(plan.one("period_us").at(0));
    State state = network_.initial;
    double began = NowUs(), measured = began;
    for (long frame = 0; frame < count; ++frame) {
      const double due = began + frame * period_us;
      if (period_us > 0) SleepUntil(due);
      if (frame == warm_up) {
        samples_ = {};
        measured = NowUs();
      }
      if (period_us > 0) samples_.late.push_back(NowUs() - due);
      asynchronous_ ? Beside(frame) : InTurn(frame, state);
      samples_.age.push_back(latest_ < 0 ? -1 : frame - latest_);
      if (record_) Record();
    }
    const double elapsed = NowUs() - measured;
    if (record_) {
      WriteFile(plan.one("record").at(0), recorded_.data(), recorded_.size());
    }
    Json json;
    json.Numbers("latency_us", samples_.latency).Numbers("invoke_us", samples_.invoke);
    json.Numbers("schedule_us", samples_.schedule).Numbers("late_us", samples_.late);
    json.Numbers("memory_age_frames", samples_.age).Text("extractors", samples_.extractors);
    json.Numbers("update_us", samples_.update).Numbers("update_frames", samples_.update_frame);
    if (writes_ >= 2) json.Number("effective_tau", double(latest_ - first_) / (writes_ - 1) - 1);
    return json.Number("elapsed_us", elapsed);
  }

 private:
  static void SleepUntil(double us) {
    timespec until;
    until.tv_sec = static_cast<time_t>(us / 1e6);
    until.tv_nsec = static_cast<long>((us - until.tv_sec * 1e6) * 1e3);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
    }
  }

  double Extract(const Call& call, bool large, long frame) {
    call.input("image").Write(frames_.image(large, frame));
    const double elapsed = call.Run();
    PassFeatures(call, step_);
    return elapsed;
  }

  double StepAndPost(const State& state) {
    WriteState(network_, step_, state);
    double elapsed = step_.Run();
    for (const char* head : {"box_encodings", "class_logits"}) {
      step_.output(head).CopyTo(post_.input(head));
    }
    elapsed += post_.Run();
    for (const char* name : {"boxes", "scores", "classes", "count"}) {
      found_[name] = post_.output(name).Read();
    }
    return elapsed;
  }

  void InTurn(long frame, State& state) {
    const bool f0 = schedule_.PicksF0(frame);
    const bool updates = f0 ? network_.f0_updates : network_.f1_updates;
    const double start = NowUs();
    double invoked = Extract(f0 ? *f0_ : f1_, f0, frame);
    invoked += StepAndPost(state);
    State after;
    if (updates || schedule_.wants_candidate()) after = ReadState(network_, step_);
    const double done = NowUs();
    const double decided = schedule_.Observe(f0, after.empty() ? state : after, state);
    if (updates) state = std::move(after);
    if (f0) Written(frame);
    Sample(f0, start, done, invoked + decided);
  }

  void Beside(long frame) {
    const double start = NowUs();
    double invoked = 0.0;
    const SharedState earlier = memory_;
    bool changed = Collect();
    const bool refresh = schedule_.PicksF0(frame) && !worker_->busy();
    if (!memory_) {
      changed = Take(worker_->Update(frames_.image(true, frame), network_.initial, frame));
      invoked += samples_.update.back();
    } else if (refresh) {
      worker_->Submit(frames_.image(true, frame), *memory_, frame);
    }
    invoked += Extract(f1_, false, frame);
    changed = Collect() || changed;  // f0 may have finished while f1 ran
    invoked += StepAndPost(*memory_);
    State candidate;
    if (schedule_.wants_candidate()) candidate = ReadState(network_, step_);
    const double done = NowUs();
    const State& before = !changed ? *memory_ : earlier ? *earlier : network_.initial;
    const State& after = changed || candidate.empty() ? *memory_ : candidate;
    const double decided = schedule_.Observe(refresh, after, before);
    Sample(refresh, start, done, invoked + decided);
  }

  bool Collect() {
    auto memory = worker_->Collect();
    return memory && Take(std::move(*memory));
  }

  bool Take(Worker::Memory memory) {
    memory_ = std::make_shared<State>(std::move(memory.state));
    samples_.update.push_back(memory.update_us);
    samples_.update_frame.push_back(memory.frame);
    Written(memory.frame);
    return true;
  }

  void Written(long frame) {
    first_ = first_ < 0 ? frame : first_;
    latest_ = frame;
    ++writes_;
  }

  void Sample(bool f0, double start, double done, double invoked) {
    const double end = NowUs();
    samples_.latency.push_back(end - start);
    samples_.invoke.push_back(invoked);
    samples_.schedule.push_back(end - done);
    samples_.extractors += f0 ? '0' : '1';
  }

  // Everything that came out of the heads and the post-processing, frame after frame.
  void Record() {
    for (const char* head : {"box_encodings", "class_logits"}) Append(step_.output(head).Read());
    for (const char* name : {"boxes", "scores", "classes", "count"}) Append(found_[name]);
  }

  void Append(const Bytes& data) { recorded_.insert(recorded_.end(), data.begin(), data.end()); }

  Network network_;
  Frames frames_;
  const bool asynchronous_;
  Calls calls_;
  Schedule schedule_;
  const Call &f1_, &step_, &post_;
  const Call* f0_ = nullptr;
  bool record_ = false;
  long first_ = -1, latest_ = -1, writes_ = 0;
  Samples samples_;
  Bytes recorded_;
  std::map<std::string, Bytes> found_;
  SharedState memory_;
  std::unique_ptr<Worker> worker_;  // destroyed, and so joined, before what it reads
};

}  // namespace

Json RunSchedule(const Plan& plan) { return Run(plan)(); }
