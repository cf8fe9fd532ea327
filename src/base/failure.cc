#include "src/base/failure.h"

#include <cstring>
#include <string>
#include <utility>

namespace postern {
namespace {

const char* Text(Errc code) {
  switch (code) {
    case Errc::kInvalidArgument:
      return "invalid argument";
    case Errc::kSystem:
      return "system error";
    case Errc::kGuestRange:
      return "outside guest memory";
    case Errc::kGuestProtocol:
      return "the guest broke the device's protocol";
    case Errc::kPeerProtocol:
      return "the peer broke the protocol";
    case Errc::kOverlap:
      return "address range already taken";
    case Errc::kNotFound:
      return "not found";
    case Errc::kExhausted:
      return "none left";
    case Errc::kUnsupported:
      return "not supported here";
    case Errc::kBadState:
      return "not possible in this state";
    case Errc::kBadFormat:
      return "malformed";
  }
  return "unknown error";
}

}  // namespace

tl::unexpected<Failure> ConfigFailure(std::string cause, std::string next_step) {
  return tl::unexpected<Failure>(
      Failure{Failure::Kind::kConfig, std::move(cause), std::move(next_step)});
}

tl::unexpected<Failure> HostFailure(std::string cause, std::string next_step) {
  return tl::unexpected<Failure>(
      Failure{Failure::Kind::kHost, std::move(cause), std::move(next_step)});
}

tl::unexpected<Failure> HostFailure(std::string_view what, const Error& error,
                                    std::string next_step) {
  std::string cause(what);
  cause += ": ";
  cause += Describe(error);
  return HostFailure(std::move(cause), std::move(next_step));
}

std::string Describe(const Error& error) {
  std::string text(error.op != nullptr ? error.op : "operation");
  text += ": ";
  if (error.code == Errc::kSystem) {
    // Not strerror: its buffer is shared between threads and its text depends on the locale.
    if (const char* description = strerrordesc_np(error.sys_errno); description != nullptr) {
      text += description;
    } else {
      text += "errno ";
      text += std::to_string(error.sys_errno);
    }
  } else {
    text += Text(error.code);
  }
  return text;
}

}  // namespace postern
