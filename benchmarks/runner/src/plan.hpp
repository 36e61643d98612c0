// The plan: what to run, as lines of words that benchmarks/runner/plan.py writes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "litert.hpp"

class Plan {
 public:
  using Line = std::vector<std::string>;

  explicit Plan(const std::string& path);

  // The words behind `key` of its only line.
  const Line& one(const std::string& key) const;
  // The same of every line; none is an empty list.
  const std::vector<Line>& all(const std::string& key) const;

 private:
  std::map<std::string, std::vector<Line>> lines_;
};

// A whole number from `low` to `high`; `what` names it in the error.
long Whole(const std::string& word, const std::string& what, long low, long high);
// The same of any number.
double Real(const std::string& word, const std::string& what, double low, double high);

constexpr long kMostRuns = 1000000, kMostPixels = 32768;  // of one side

// What the line `threads` says.
long Threads(const Plan& plan);

// A whole file, which is no larger than a plan or a table may be.
litert::Bytes ReadFile(const std::string& path);
// A file that holds `bytes`, or an error.
litert::Bytes ReadFile(const std::string& path, size_t bytes);
// Writes a file whole or not at all.
void WriteFile(const std::string& path, const void* data, size_t bytes);

// Puts JSON together: {"key":value,…}.
class Json {
 public:
  Json& Text(const std::string& key, const std::string& value);
  Json& Number(const std::string& key, double value);
  Json& Flag(const std::string& key, bool value);
  Json& Numbers(const std::string& key, const std::vector<double>& values);
  Json& Object(const std::string& key, const Json& value) { return Raw(key, value.str()); }
  Json& Objects(const std::string& key, const std::vector<Json>& values);
  std::string str() const { return "{" + text_ + "}"; }

 private:
  Json& Raw(const std::string& key, const std::string& value);
  std::string text_;
};

// The three jobs; a schedule is of the interleaved detector or of Patchwork.
Json MeasureGraph(const Plan& plan);
Json CheckGoldens(const Plan& plan);
Json RunInterleaved(const Plan& plan);
Json RunWindows(const Plan& plan);
