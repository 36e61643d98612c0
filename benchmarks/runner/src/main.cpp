// memvid_runner PLAN OUTPUT LIBRARY: runs a plan and writes one JSON file, whole or not at all.
//
// Exit code 0 means that the file is there, 2 and 3 that one line says why not, 4 that it died and
// one line says of which signal. Paths inside the plan are relative to the working
// directory.

#include <sys/resource.h>

#include <cstdio>
#include <new>
#include <stdexcept>

#include "plan.hpp"

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: memvid_runner PLAN OUTPUT LIBRARY\n");
    return 2;
  }
  try {
    const Plan plan(argv[1]);
    litert::CheckAbi(argv[3], std::string(argv[2]) + ".probe");
    litert::NameDeaths();
    litert::Open(argv[3]);
    const std::string job = plan.one("job").at(0);
    Json json;
    if (job == "graph") {
      json = MeasureGraph(plan);
    } else if (job == "golden") {
      json = CheckGoldens(plan);
    } else if (job == "schedule") {
      const std::string system = plan.one("system").at(0);
      if (system != "interleaved" && system != "patchwork") {
        throw litert::Error("plan: system is '" + system + "', wanted interleaved or patchwork");
      }
      json = system == "interleaved" ? RunInterleaved(plan) : RunWindows(plan);
    } else {
      throw litert::Error("plan: job is '" + job + "', wanted graph, golden or schedule");
    }
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    json.Text("job", job).Number("peak_memory_kib", usage.ru_maxrss);
    const std::string text = json.str() + "\n";
    WriteFile(argv[2], text.data(), text.size());
  } catch (const litert::Error& error) {
    fprintf(stderr, "memvid_runner: %s\n", error.what());
    return 3;
  } catch (const std::out_of_range&) {
    fprintf(stderr, "memvid_runner: %s: a line has too few words\n", argv[1]);
    return 3;
  } catch (const std::bad_alloc&) {
    fprintf(stderr, "memvid_runner: %s: there is not enough memory\n", argv[1]);
    return 3;
  } catch (const std::exception& error) {
    fprintf(stderr, "memvid_runner: %s: %s\n", argv[1], error.what());
    return 3;
  }
  return 0;
}
