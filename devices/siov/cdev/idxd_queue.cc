#include "devices/siov/cdev/idxd_queue.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "src/base/fd.h"
#include "src/base/text.h"

namespace postern::dsa {
namespace {

constexpr std::size_t kShown = 64;

std::string Read(const std::string& path) {
  return vfio::ReadLine(path).value_or("");
}

// "wqX.Y": X, as text. Nothing: not a queue's name.
std::optional<std::string> DeviceOf(std::string_view name) {
  constexpr std::size_t kMaxDigits = 9;
  if (!name.starts_with("wq")) return std::nullopt;
  const std::string_view numbers = name.substr(2);
  const std::size_t dot = numbers.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const auto is_number = [](std::string_view text) {
    return !text.empty() && text.size() <= kMaxDigits &&
           std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
  };
  if (!is_number(numbers.substr(0, dot)) || !is_number(numbers.substr(dot + 1)))
    return std::nullopt;
  return std::string(numbers.substr(0, dot));
}

struct Place {
  std::string name;    // "wq0.0"
  std::string device;  // "dsa0"
  std::string folder;  // of its attributes
};

Outcome<Place> FindQueue(const std::string& path, const vfio::HostRoots& roots) {
  Place place;
  place.name = path.substr(path.rfind('/') + 1);
  const std::optional<std::string> number = DeviceOf(place.name);
  if (!number || path.find('/') == std::string::npos) {
    return ConfigFailure(fmt::format("'{}' is no work queue", Escaped(path, kShown)),
                         "give path=/dev/dsa/wqX.Y; 'postern vdev list' shows them");
  }
  place.device = "dsa" + *number;
  const std::string devices = roots.sysfs + "/bus/dsa/devices/";
  place.folder = devices + place.name;
  if (!vfio::Exists(place.folder)) {
    return HostFailure(fmt::format("this host has no work queue {}", place.name),
                       "load the driver (modprobe idxd), or see 'postern vdev list'");
  }
  if (!vfio::Exists(devices + place.device)) {
    return HostFailure(fmt::format("{} is not a queue of a DSA", place.name),
                       "give a queue of a DSA; 'postern vdev list' shows them");
  }
  return place;
}

Outcome<void> CheckUse(const Place& place) {
  const std::string type = Read(place.folder + "/type");
  if (type != "user") {
    return HostFailure(
        fmt::format("{} has type '{}', not 'user'", place.name, Escaped(type, kShown)),
        fmt::format("disable it, then: accel-config config-wq {}/{} --type=user --name=postern "
                    "--driver-name=user",
                    place.device, place.name));
  }
  const std::string state = Read(place.folder + "/state");
  if (state != "enabled") {
    return HostFailure(
        fmt::format("{} is {}", place.name, state.empty() ? "in no state" : Escaped(state, kShown)),
        fmt::format("accel-config enable-device {}; accel-config enable-wq {}/{}", place.device,
                    place.device, place.name));
  }
  return {};
}

Outcome<IdxdQueueInfo> ReadInfo(const Place& place, const std::string& devices) {
  IdxdQueueInfo info;
  info.name = place.name;
  const auto odd = [&](const char* attribute) {
    return HostFailure(fmt::format("{}: its attribute {} makes no sense", place.name, attribute),
                       "use a kernel whose idxd driver has it (6.1 or later)");
  };
  const std::string mode = Read(place.folder + "/mode");
  if (mode != "shared" && mode != "dedicated") return odd("mode");
  info.shared = mode == "shared";
  const auto size = vfio::ReadNumber(place.folder + "/size");
  if (!size || *size == 0 || *size > std::numeric_limits<std::uint16_t>::max()) return odd("size");
  info.size = static_cast<std::uint32_t>(*size);
  const auto transfer = vfio::ReadNumber(place.folder + "/max_transfer_size");
  if (!transfer || *transfer == 0) return odd("max_transfer_size");
  info.max_transfer = *transfer;
  // A queue without an attribute of its own does all its device does.
  const std::string own = Read(place.folder + "/op_config");
  const std::string all = Read(devices + place.device + "/op_cap");
  if (!ParseOperations(own.empty() ? all : own, info.operations))
    return odd(own.empty() ? "op_cap (of its device)" : "op_config");
  return info;
}

tl::unexpected<Failure> OpenFailure(const Place& place, const std::string& path, int error) {
  std::string next;
  switch (error) {
    case EACCES:
    case EPERM:
      next = fmt::format("give this user the file: chown USER {}", Escaped(path, kShown));
      break;
    case EBUSY:
      next = "another process has this dedicated queue: end it, or give another queue";
      break;
    case EOPNOTSUPP:
    case ENODEV:
    case ENXIO:
      next = "boot the host with intel_iommu=on,sm_on: such a queue needs shared virtual memory";
      break;
    default:
      next = fmt::format("look for a message of {} in the kernel's log", place.device);
      break;
  }
  return HostFailure(place.name, SysError("open", error).value(), std::move(next));
}

class DriverQueue final : public IdxdQueue {
 public:
  DriverQueue(IdxdQueueInfo info, Fd fd, std::string state)
      : info_(std::move(info)), fd_(std::move(fd)), state_(std::move(state)) {}

  [[nodiscard]] const IdxdQueueInfo& info() const override { return info_; }
  [[nodiscard]] int Write(const siov::Descriptor& descriptor) override {
    const ssize_t written = write(fd_.get(), descriptor.data(), descriptor.size());
    if (written < 0) return errno;
    // The driver counts descriptors in bytes; nothing at all is no answer it has.
    return written == 0 ? EIO : 0;
  }
  [[nodiscard]] bool Alive() override { return fd_.valid() && Read(state_) == "enabled"; }
  void Close() override { fd_ = Fd(); }

 private:
  const IdxdQueueInfo info_;
  Fd fd_;
  const std::string state_;
};

}  // namespace

bool ParseOperations(const std::string& text, siov::OperationSet& operations) {
  constexpr std::size_t kWords = 8;
  constexpr std::size_t kDigits = 8;
  operations = {};
  std::size_t word = 0;
  std::size_t end = text.size();
  while (true) {
    const std::size_t comma = end == 0 ? std::string::npos : text.rfind(',', end - 1);
    const std::size_t begin = comma == std::string::npos ? 0 : comma + 1;
    const std::string digits = text.substr(begin, end - begin);
    const std::optional<std::uint64_t> value = vfio::ParseNumber(digits, 16);
    if (!value || digits.size() > kDigits || word == kWords) return false;
    operations[word / 2] |= *value << (word % 2 * 32);
    ++word;
    if (comma == std::string::npos) return true;
    end = comma;
  }
}

Outcome<IdxdQueueInfo> ExamineIdxdQueue(const std::string& path, const vfio::HostRoots& roots) {
  Outcome<Place> place = FindQueue(path, roots);
  if (!place) return tl::unexpected(place.error());
  if (Outcome<void> usable = CheckUse(*place); !usable) return tl::unexpected(usable.error());
  return ReadInfo(*place, roots.sysfs + "/bus/dsa/devices/");
}

Outcome<std::unique_ptr<IdxdQueue>> OpenIdxdQueue(const std::string& path,
                                                  const vfio::HostRoots& roots) {
  Outcome<IdxdQueueInfo> info = ExamineIdxdQueue(path, roots);
  if (!info) return tl::unexpected(info.error());
  Outcome<Place> place = FindQueue(path, roots);
  if (!place) return tl::unexpected(place.error());
  Fd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid()) return OpenFailure(*place, path, errno);
  return std::make_unique<DriverQueue>(std::move(*info), std::move(fd), place->folder + "/state");
}

}  // namespace postern::dsa
