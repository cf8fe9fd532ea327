// main() of every unit test: doctest's console output for people and, when Bazel asks for it by
// XML_OUTPUT_FILE, one JUnit <testcase> per test case, so that ./check counts cases and not
// binaries. doctest's own JUnit reporter would take the place of the console output and knows no
// skipped cases.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "bazel/testing/skip.h"

#include <doctest/doctest.h>

namespace {

struct CaseResult {
  std::string name;
  double seconds = 0;
  bool failed = false;
  std::string failure;
  std::string skip_reason;
};

std::string& SkipReason() {
  static std::string reason;
  return reason;
}

std::string EscapeXml(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        // XML 1.0 has no way to write other control characters.
        out += (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') ? '?' : c;
    }
  }
  return out;
}

// Written after every case, so that a crash still leaves the cases before it, and the one that
// crashed, on record.
class JunitFile : public doctest::IReporter {
 public:
  explicit JunitFile(const doctest::ContextOptions& /*options*/) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): before any test runs
    const char* path = std::getenv("XML_OUTPUT_FILE");
    if (path != nullptr) path_ = path;
  }

  void report_query(const doctest::QueryData& /*query*/) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& /*stats*/) override { WriteAll(); }
  void test_case_start(const doctest::TestCaseData& data) override {
    SkipReason().clear();
    results_.push_back(CaseResult{});
    results_.back().name = data.m_name;
    results_.back().failed = true;  // until it ends
    results_.back().failure = "did not end";
    WriteAll();
  }
  void test_case_reenter(const doctest::TestCaseData& /*data*/) override {}
  void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
    if (results_.empty()) return;
    CaseResult& result = results_.back();
    result.seconds = stats.seconds;
    result.failed = !stats.testCaseSuccess;
    if (first_failure_.empty()) first_failure_ = "failed";
    result.failure = result.failed ? first_failure_ : "";
    if (!result.failed) result.skip_reason = SkipReason();
    first_failure_.clear();
  }
  void test_case_exception(const doctest::TestCaseException& exception) override {
    NoteFailure(std::string(exception.is_crash ? "crash: " : "exception: ") +
                exception.error_string.c_str());
  }
  void subcase_start(const doctest::SubcaseSignature& /*subcase*/) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData& data) override {
    if (!data.m_failed) return;
    NoteFailure(std::string(data.m_file) + ":" + std::to_string(data.m_line) + ": " + data.m_expr +
                " => " + data.m_decomp.c_str());
  }
  void log_message(const doctest::MessageData& data) override {
    if (data.m_severity == doctest::assertType::is_warn) return;
    NoteFailure(std::string(data.m_file) + ":" + std::to_string(data.m_line) + ": " +
                data.m_string.c_str());
  }
  void test_case_skipped(const doctest::TestCaseData& /*data*/) override {}

 private:
  void NoteFailure(const std::string& text) {
    if (first_failure_.empty()) first_failure_ = text;
  }

  void WriteAll() const {
    if (path_.empty()) return;
    std::size_t failures = 0;
    std::size_t skipped = 0;
    std::string cases;
    for (const CaseResult& result : results_) {
      failures += result.failed ? 1U : 0U;
      skipped += result.skip_reason.empty() ? 0U : 1U;
      cases += "<testcase name=\"" + EscapeXml(result.name) + "\" time=\"" +
               std::to_string(result.seconds) + "\">";
      if (result.failed) {
        cases += "<failure message=\"" + EscapeXml(result.failure) + "\"/>";
      } else if (!result.skip_reason.empty()) {
        cases += "<skipped message=\"" + EscapeXml(result.skip_reason) + "\"/>";
      }
      cases += "</testcase>\n";
    }
    std::ofstream(path_, std::ios::trunc)
        << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
        << "<testsuite name=\"doctest\" tests=\"" << results_.size() << "\" failures=\"" << failures
        << "\" skipped=\"" << skipped << "\">\n"
        << cases << "</testsuite>\n</testsuites>\n";
  }

  std::string path_;
  std::vector<CaseResult> results_;
  std::string first_failure_;
};

REGISTER_LISTENER("junit_file", 1, JunitFile);

}  // namespace

namespace postern::testing {

void MarkSkipped(const char* reason) {
  SkipReason() = reason;
  std::cout << "SKIPPED: " << reason << std::endl;
}

}  // namespace postern::testing

int main(int argc, char** argv) {
  doctest::Context context;
  context.setOption("no-version", true);
  context.setOption("no-intro", true);
  context.applyCommandLine(argc, argv);
  return context.run();
}
