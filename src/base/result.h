#pragma once

// Result<T>, Error and TRY: how a fallible function answers.
//
// An Error is a small value: what kind of failure, which operation, errno if a system call failed,
// and where it was noticed. It carries no text built at run time; human context is added at the
// edge where a user reads it (src/base/failure.h).
//
//   Result<Fd> OpenDisk(const char* path) {
//     int fd = open(path, O_RDWR | O_CLOEXEC);
//     if (fd < 0) return SysError("open disk");
//     return Fd(fd);
//   }
//   Result<void> Use() {
//     Fd fd = TRY(OpenDisk("a.img"));
//     ...
//     return {};
//   }
//
// Is not: a channel for guest misbehaviour that has a defined reaction (count it and carry on), nor
// for our own bugs (CHECK). Threads: values; any thread.

#include <cerrno>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <tl/expected.hpp>

namespace postern {

enum class Errc : std::uint8_t {
  kInvalidArgument,  // a caller's or a user's value is out of range
  kSystem,           // a system call failed; sys_errno says how
  kGuestRange,       // a guest address range does not lie in guest memory
  kGuestProtocol,    // the guest broke a rule of the device's specification
  kPeerProtocol,     // a socket peer broke a rule of the protocol
  kOverlap,          // an address range is already taken
  kNotFound,
  kExhausted,    // no slot, vector, id or window left
  kUnsupported,  // the host or the other side cannot do this
  kBadState,     // the operation does not fit the object's state
  kBadFormat,    // a file or saved state is malformed
};

struct Error {
  Errc code;
  std::int16_t sys_errno;
  std::int32_t line;
  const char* op;  // static string: the operation that failed, in the words of its API
  const char* file;
};
static_assert(sizeof(Error) <= 32 && std::is_trivially_copyable_v<Error>);

template <typename T>
using Result = tl::expected<T, Error>;

using Unexpected = tl::unexpected<Error>;

[[nodiscard]] inline Unexpected Err(Errc code, const char* op, const char* file = __builtin_FILE(),
                                    int line = __builtin_LINE()) {
  return Unexpected(Error{code, 0, line, op, file});
}

// For a failed system call: keeps errno. `op` names the call and its object, e.g. "KVM_CREATE_VM".
[[nodiscard]] inline Unexpected SysError(const char* op, int error = errno,
                                         const char* file = __builtin_FILE(),
                                         int line = __builtin_LINE()) {
  return Unexpected(Error{Errc::kSystem, static_cast<std::int16_t>(error), line, op, file});
}

}  // namespace postern

// Evaluates to the value of a Result, or returns its Error from the enclosing function.
#define TRY(expression)                                            \
  __extension__({                                                  \
    auto&& postern_try_result = (expression);                      \
    if (!postern_try_result.has_value()) [[unlikely]]              \
      return ::postern::Unexpected(postern_try_result.error());    \
    ::postern::internal::TakeValue(std::move(postern_try_result)); \
  })

namespace postern::internal {
template <typename T>
T TakeValue(tl::expected<T, Error>&& result) {
  return std::move(*result);
}
inline void TakeValue(tl::expected<void, Error>&&) {}
template <typename T>
T TakeValue(tl::expected<T, Error>& result) {
  return std::move(*result);
}
inline void TakeValue(tl::expected<void, Error>&) {}
}  // namespace postern::internal
