#include "src/cli/print.h"

#include <fmt/format.h>

namespace postern::cli {

void Print(std::FILE* to, std::string_view text) {
  // Nothing sensible can be done about a standard stream that does not take the text.
  (void)std::fwrite(text.data(), 1, text.size(), to);
  (void)std::fflush(to);
}

int PrintFailure(const Failure& failure) {
  Print(stderr,
        fmt::format("postern: {}\n{}{}{}", failure.cause, failure.next_step.empty() ? "" : "  ",
                    failure.next_step, failure.next_step.empty() ? "" : "\n"));
  return failure.kind == Failure::Kind::kConfig ? 2 : 1;
}

}  // namespace postern::cli
