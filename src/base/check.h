#pragma once

// CHECK: our own invariants. A failing CHECK is a bug in Postern: it prints the expression and
// aborts the process. Is not for anything a guest, a peer, a file or a user can influence.

namespace postern::internal {
[[noreturn]] void CheckFailed(const char* expression, const char* file, int line);
}

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) [[unlikely]]                                      \
      ::postern::internal::CheckFailed(#condition, __FILE__, __LINE__); \
  } while (false)
