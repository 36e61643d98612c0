// The library is found by name at run time, and a name says nothing about parameters. So a child
// process runs the graph of probe.hpp, and says what went wrong through a pipe or by dying.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "plan.hpp"
#include "probe.hpp"

namespace litert {
namespace {

constexpr int kDied = 4;  // exit code
constexpr unsigned kTimeoutS = 60;  // an emulated processor needs one

// Every function that the jobs call, at least once.
void RunProbe(const std::string& file) {
  const Model model(file, 1, true);
  const Call call(model, "probe");
  const Tensor &x = call.input("x"), &y = call.output("y");
  const float values[6] = {-3, -1, 0, 0.5, 2, 100};
  float found[6] = {};
  for (const Tensor* tensor : {&x, &y}) {
    if (tensor->type != kFloat32 || tensor->bytes != sizeof values) {
      throw Error("it describes tensor " + tensor->name + " otherwise");
    }
  }
  x.Write(values);
  call.Another("y").CopyTo(y);
  model.StartProfile();
  call.Run();
  if (model.StopProfile().empty()) throw Error("it measured no operator");
  y.Read(found);
  for (int i = 0; i < 6; ++i) {
    if (found[i] != 2 * values[i] + 1) throw Error("it computes otherwise");
  }
  if (!model.fully_accelerated()) throw Error("XNNPACK does not run two additions");
}

// In the child: ends the process, after writing what went wrong to `report`.
[[noreturn]] void Try(const std::string& library, const std::string& file, int report) {
  alarm(kTimeoutS);
  const int nowhere = open("/dev/null", O_WRONLY);
  dup2(nowhere, STDOUT_FILENO);
  dup2(nowhere, STDERR_FILENO);
  try {
    Open(library);
    RunProbe(file);
  } catch (const std::exception& error) {
    const ssize_t written = write(report, error.what(), strlen(error.what()));
    _exit(written > 0 ? 1 : 2);
  }
  _exit(0);
}

void Say(const char* text) {
  if (write(STDERR_FILENO, text, strlen(text)) < 0) _exit(kDied);
}

// Only what a handler of signals may call.
void Died(int number) {
  const char digits[] = {static_cast<char>('0' + number / 10), static_cast<char>('0' + number % 10),
                         '\0'};
  Say("memvid_runner: died of signal ");
  Say(digits);
  Say("; the model opened last, which may be damaged, is ");
  Say(newest_model[0] == '\0' ? "none" : newest_model);
  Say("\n");
  _exit(kDied);
}

}  // namespace

char newest_model[512];

void NameDeaths() {
  static char stack[1 << 16];  // for a death of too deep a recursion
  stack_t other = {};
  other.ss_sp = stack;
  other.ss_size = sizeof stack;
  sigaltstack(&other, nullptr);
  struct sigaction action = {};
  action.sa_handler = Died;
  action.sa_flags = SA_ONSTACK;
  for (const int number : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV}) {
    sigaction(number, &action, nullptr);
  }
}

void CheckAbi(const std::string& library, const std::string& scratch) {
  WriteFile(scratch, kProbe, sizeof kProbe);
  int ends[2];
  if (pipe(ends) != 0) throw Error(std::string("pipe: ") + strerror(errno));
  const pid_t child = fork();
  if (child == 0) Try(library, scratch, ends[1]);
  close(ends[1]);
  std::string said;
  char text[512];
  for (ssize_t size; child > 0 && (size = read(ends[0], text, sizeof text)) > 0;) {
    said.append(text, size);
  }
  close(ends[0]);
  int status = 0;
  const bool ended = child > 0 && waitpid(child, &status, 0) == child;
  unlink(scratch.c_str());
  if (!ended) throw Error("the library cannot be tried in a process of its own");
  if (status == 0) return;
  if (WIFSIGNALED(status)) said = "it dies of signal " + std::to_string(WTERMSIG(status));
  throw Error(library + " is not libLiteRt.so of ai-edge-litert " + LITERT_RANGE + ": " + said);
}

}  // namespace litert
