// The interleaved detector on a sequence of frames: the same calls, state and decisions as
// memvid_tf/runtime/{runners,asynchronous,schedules}.py, whose comments say why they are so.
//
// Graphs hand tensors on in shared memory, and the state has two homes that take turns. The worker
// has memory of its own; between the threads a state is copied.

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>

#include "sequence.hpp"

using litert::Bytes;
using litert::Call;
using litert::Error;
using litert::NowUs;
using litert::Tensor;

namespace {

using State = std::vector<Tensor>;  // in the manifest's order

// What every part of a run must know.
struct Network {
  std::vector<Plan::Line> state;  // NAME INPUT OUTPUT INITIAL
  bool f0_updates, f1_updates;

  explicit Network(const Plan& plan) : state(plan.all("state")) {
    f0_updates = Whole(plan.one("updates_state").at(0), "updates_state", 0, 1) != 0;
    f1_updates = Whole(plan.one("updates_state").at(1), "updates_state", 0, 1) != 0;
  }

  // Memory for a state that a call can write.
  State Another(const Call& call) const {
    State made;
    for (const auto& line : state) made.push_back(call.Another(line.at(2)));
    return made;
  }

  // The empty memory.
  State Initial(const Call& call) const {
    State made = Another(call);
    for (size_t i = 0; i < made.size(); ++i) {
      made[i].Write(ReadFile(state[i].at(3), made[i].bytes).data());
    }
    return made;
  }

  void BindInputs(Call& call, const State& from, const std::string& suffix = "") const {
    for (size_t i = 0; i < from.size(); ++i) call.BindInput(state[i].at(1) + suffix, from[i]);
  }

  void BindOutputs(Call& call, const State& to) const {
    for (size_t i = 0; i < to.size(); ++i) call.BindOutput(state[i].at(2), to[i]);
  }
};

void Copy(const State& from, const State& to) {
  for (size_t i = 0; i < from.size(); ++i) from[i].CopyTo(to[i]);
}

// schedules.py: FixedSchedule, DueSchedule and AdaptiveSchedule.
class Schedule {
 public:
  Schedule(const Plan& plan, const Network& network, Calls& calls, bool asynchronous)
      : network_(network), due_(asynchronous) {
    const auto& words = plan.one("schedule");
    adaptive_ = words.at(1) == "adaptive";
    tau_ = Whole(words.at(2), "tau", -1, kMostRuns);  // -1: f1 alone, or no bound for the policy
    if (!adaptive_) return;
    policy_ = &calls["policy"];
    const auto& policy = plan.one("policy");  // OBSERVES F0_INDEX F1_INDEX ZERO_ONE_FILE
    wants_candidate_ = policy.at(0) == "candidate";
    const Tensor &eta = policy_->input("eta"), &q = policy_->output("q_values");
    const long last = q.bytes / q.element() - 1;
    q_index_[0] = Whole(policy.at(1), "q index", 0, last);
    q_index_[1] = Whole(policy.at(2), "q index", 0, last);
    levels_ = ReadFile(policy.at(3), 2 * eta.element());
    eta_.assign(eta.bytes / eta.element(), 0);
    q_values_.resize(q.bytes);
  }

  bool wants_candidate() const { return wants_candidate_; }

  bool PicksF0(long frame) {
    frame_ = frame;
    if (adaptive_) return frame == 0 || (tau_ >= 0 && since_f0_ >= tau_) || prefers_f0_;
    if (due_) return frame >= next_;
    return tau_ >= 0 && frame % (tau_ + 1) == 0;
  }

  // Returns the time that the policy's invoke took.
  // after: what is shown after this frame; before: what was shown after the frame before.
  double Observe(bool f0, const State& after, const State& before) {
    if (f0) next_ = frame_ + tau_ + 1;
    if (!adaptive_) return 0.0;
    memmove(eta_.data() + 1, eta_.data(), eta_.size() - 1);
    eta_[0] = !f0;
    since_f0_ = f0 ? 0 : since_f0_ + 1;
    const size_t element = levels_.size() / 2;
    policy_->input("eta").Map(true, [&](unsigned char* stored) {
      for (size_t i = 0; i < eta_.size(); ++i) {
        memcpy(stored + i * element, &levels_[eta_[i] * element], element);
      }
    });
    network_.BindInputs(*policy_, after);
    network_.BindInputs(*policy_, before, "_before");
    const double elapsed = policy_->Run();
    // One scale for both values: what is stored compares as what it means.
    policy_->output("q_values").Read(q_values_.data());
    prefers_f0_ = Value(q_index_[0]) >= Value(q_index_[1]);
    return elapsed;
  }

 private:
  double Value(long index) const {
    if (policy_->output("q_values").type == litert::kInt8) {
      return static_cast<int8_t>(q_values_[index]);
    }
    float value;
    memcpy(&value, &q_values_[4 * index], 4);
    return value;
  }

  const Network& network_;
  const bool due_;
  bool adaptive_, wants_candidate_ = false, prefers_f0_ = true;
  long tau_, frame_ = 0, next_ = 0, since_f0_ = 0, q_index_[2] = {0, 1};
  Call* policy_ = nullptr;
  Bytes levels_, eta_, q_values_;
};

// asynchronous.py: f0 and the memory's update, in a thread that waits for work. Everything but the
// loop belongs to the calling thread, which touches image and states only while the worker rests.
class Worker {
 public:
  struct Update {
    long frame;
    double us;
  };

  Worker(const Plan& plan, const Network& network)
      : calls_(plan, 1), f0_(calls_["f0"]), update_(calls_["update"]) {
    update_.BindInput("features", f0_.output("features"));
    before_ = network.Initial(update_);
    after_ = network.Another(update_);
    network.BindInputs(update_, before_);
    network.BindOutputs(update_, after_);
  }

  ~Worker() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  // Where the next frame and the memory before it are put, and the memory after it is found.
  const Tensor& image() const { return f0_.input("image"); }
  const State& before() const { return before_; }
  const State& after() const { return after_; }

  // In the calling thread.
  Update RunHere(long frame) {
    const double start = NowUs();
    f0_.Run();
    update_.Run();
    return {frame, NowUs() - start};
  }

  bool busy() const { return busy_; }

  void Submit(long frame) {
    if (!thread_.joinable()) thread_ = std::thread(&Worker::Loop, this);
    busy_ = true;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      frame_ = frame;
    }
    wake_.notify_one();
  }

  // What was submitted last, if it is ready.
  std::optional<Update> Collect() {
    if (!busy_ || !done_.exchange(false, std::memory_order_acquire)) return std::nullopt;
    busy_ = false;
    if (failure_) std::rethrow_exception(failure_);
    return result_;
  }

 private:
  void Loop() {
    while (true) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || frame_ >= 0; });
      if (frame_ < 0) return;
      const long frame = frame_;
      frame_ = -1;
      lock.unlock();
      try {
        result_ = RunHere(frame);
      } catch (...) {  // whatever it is belongs to the calling thread
        failure_ = std::current_exception();
      }
      done_.store(true, std::memory_order_release);
    }
  }

  Calls calls_;
  Call &f0_, &update_;
  State before_, after_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false, busy_ = false;  // busy_ belongs to the calling thread
  long frame_ = -1;
  std::atomic<bool> done_{false};
  Update result_{};
  std::exception_ptr failure_;
};

class Interleaved : public Sequence {
 public:
  explicit Interleaved(const Plan& plan)
      : Sequence(plan),
        network_(plan),
        asynchronous_(plan.one("schedule").at(0) == "async"),
        calls_(plan, threads_),
        schedule_(plan, network_, calls_, asynchronous_),
        f0_images_(plan, "f0", frames_),
        f1_images_(plan, "f1", frames_),
        f1_(calls_["f1"]),
        step_(calls_["step"]),
        on_f1_(calls_.has("read") ? calls_["read"] : step_),
        post_(calls_["post"], step_) {
    f1_.BindOutput("features", on_f1_.input("features"));
    if (&on_f1_ != &step_) {
      for (const char* head : kHeads) on_f1_.BindOutput(head, step_.output(head));
    }
    empty_ = network_.Initial(step_);
    for (State& state : states_) state = network_.Another(step_);
    if (asynchronous_) {
      worker_ = std::make_unique<Worker>(plan, network_);
    } else {
      f0_ = &calls_["f0"];
      f0_->BindOutput("features", step_.input("features"));
    }
  }

 private:
  Parts Frame(long frame) override {
    last_ = frame;
    Parts parts = asynchronous_ ? Beside(frame) : InTurn(frame);
    parts.age = latest_ < 0 ? -1 : frame - latest_;
    return parts;
  }

  void Extract(Call& call, const Images& images, long frame, Parts& parts) {
    Prepare(images, frame, call.input("image"), parts);
    parts.extract = call.Run();
  }

  // Returns what the memory's call wrote: the memory as it is after a call that only reads.
  const State& StepAndPost(Call& call, Parts& parts) {
    const bool writes = &call == &step_;
    const State& written = writes ? Unused() : *memory_;
    network_.BindInputs(call, *memory_);
    if (writes) network_.BindOutputs(call, written);
    parts.memory = call.Run();
    parts.post = post_();
    return written;
  }

  void Decide(const State& shown, Parts& parts) {
    const double start = NowUs();
    parts.policy = schedule_.Observe(parts.whole, shown, *shown_);
    parts.schedule = NowUs() - start;
    shown_ = &shown;
  }

  Parts InTurn(long frame) {
    Parts parts;
    parts.whole = schedule_.PicksF0(frame);
    const bool updates = parts.whole ? network_.f0_updates : network_.f1_updates;
    Extract(parts.whole ? *f0_ : f1_, parts.whole ? f0_images_ : f1_images_, frame, parts);
    const State& written = StepAndPost(parts.whole ? step_ : on_f1_, parts);
    const bool changes = updates || schedule_.wants_candidate();
    Decide(changes ? written : *memory_, parts);
    if (updates) memory_ = &written;
    if (parts.whole) Written(frame);
    return parts;
  }

  Parts Beside(long frame) {
    Parts parts;
    const State* const before = memory_;
    Collect();
    parts.whole = schedule_.PicksF0(frame) && !worker_->busy();
    if (parts.whole) Prepare(f0_images_, frame, worker_->image(), parts);
    if (latest_ < 0) {
      const Worker::Update update = worker_->RunHere(frame);
      parts.update = update.us;
      Take(update);
    } else if (parts.whole) {
      Copy(*memory_, worker_->before());
      worker_->Submit(frame);
    }
    Extract(f1_, f1_images_, frame, parts);
    Collect();  // f0 may have finished while f1 ran
    const State& candidate = StepAndPost(on_f1_, parts);
    const bool shows_candidate = memory_ == before && schedule_.wants_candidate();
    Decide(shows_candidate ? candidate : *memory_, parts);
    return parts;
  }

  void Collect() {
    if (const auto update = worker_->Collect()) Take(*update);
  }

  void Take(const Worker::Update& update) {
    const State& arrived = Unused();
    Copy(worker_->after(), arrived);
    memory_ = &arrived;
    update_us_.push_back(update.us);
    update_frames_.push_back(update.frame);
    Written(update.frame);
  }

  // Where something can be written: neither the memory nor what the schedule was last shown.
  const State& Unused() const {
    const auto used = [&](const State& state) { return &state == memory_ || &state == shown_; };
    return *std::find_if_not(states_.begin(), states_.end(), used);
  }

  void Written(long frame) {
    first_ = first_ < 0 ? frame : first_;
    latest_ = frame;
    arrived_ = last_;
    ++writes_;
  }

  // runners.py, MemoryHistory: an open last gap counts once it is longer than the mean.
  double EffectiveTau() const {
    const long gaps = writes_ - 1, frames = latest_ - first_, since = last_ - arrived_;
    const double mean = double(frames) / gaps - 1;
    return std::max(mean, double(frames - gaps + since) / (gaps + 1));
  }

  void Record(Bytes& recorded) override {
    const auto append = [&](const Bytes& data) {
      recorded.insert(recorded.end(), data.begin(), data.end());
    };
    for (const char* head : kHeads) append(step_.output(head).Read());
    for (const Bytes& found : post_.found()) append(found);
  }

  void Restart() override {
    update_us_.clear();
    update_frames_.clear();
  }

  void Finish(Json& json) const override {
    json.Numbers("update_us", update_us_).Numbers("update_frames", update_frames_);
    if (writes_ >= 2) json.Number("effective_tau", EffectiveTau());
  }

  const Network network_;
  const bool asynchronous_;
  Calls calls_;
  Schedule schedule_;
  const Images f0_images_, f1_images_;
  Call &f1_, &step_, &on_f1_;  // the memory's calls on frames of f0 and of f1
  Call* f0_ = nullptr;
  Post post_;
  State empty_;
  std::array<State, 3> states_;
  const State *memory_ = &empty_, *shown_ = &empty_;
  long first_ = -1, latest_ = -1, arrived_ = -1, last_ = -1, writes_ = 0;
  std::vector<double> update_us_, update_frames_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace

Json RunInterleaved(const Plan& plan) { return Interleaved(plan).Run(); }
