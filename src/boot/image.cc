#include "src/boot/image.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "src/base/text.h"

namespace postern::boot {
namespace {

// Until all is read, the file ends, or an error.
Result<void> ReadFully(int fd, void* to, std::size_t length, std::uint64_t offset) {
  auto* at = static_cast<std::byte*>(to);
  while (length != 0) {
    const ssize_t n = pread(fd, at, length, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SysError("read");
    // The size was checked before: somebody truncated the file since.
    if (n == 0) return Err(Errc::kBadFormat, "file became shorter while it was read");
    const auto got = static_cast<std::size_t>(n);
    at += got;
    length -= got;
    offset += got;
  }
  return {};
}

std::string Name(const char* what, const std::string& name) {
  return std::string(what) + " '" + Escaped(name) + "'";
}

}  // namespace

Outcome<Image> Image::Open(const std::string& path, const char* what) {
  // O_NONBLOCK: opening a FIFO nobody writes to must fail below, not hang here.
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) {
    return ConfigFailure(
        "cannot open " + Name(what, path) + ": " + strerrordesc_np(errno),
        errno == EACCES ? "make the file readable for this user" : "check the path");
  }
  return FromFd(std::move(fd), path, what);
}

Outcome<Image> Image::FromFd(Fd fd, std::string name, const char* what) {
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) {
    return HostFailure("cannot examine " + Name(what, name) + ": " + strerrordesc_np(errno));
  }
  if (!S_ISREG(info.st_mode)) {
    return ConfigFailure(Name(what, name) + " is not a regular file",
                         "give the path of an image file");
  }
  Image image;
  image.fd_ = std::move(fd);
  image.size_ = static_cast<std::uint64_t>(info.st_size);
  image.name_ = std::move(name);
  image.what_ = what;
  return image;
}

Image Image::FromBytes(std::span<const std::byte> bytes, std::string name, const char* what) {
  Image image;
  image.bytes_ = bytes;
  image.size_ = bytes.size();
  image.name_ = std::move(name);
  image.what_ = what;
  return image;
}

std::string Image::Label() const {
  return Name(what_, name_);
}

Result<void> Image::Read(std::uint64_t offset, std::span<std::byte> to) const {
  if (!Fits(offset, to.size())) return Err(Errc::kBadFormat, "read beyond the end of the image");
  if (fd_.valid()) return ReadFully(fd_.get(), to.data(), to.size(), offset);
  const std::span<const std::byte> from = bytes_.subspan(offset, to.size());
  std::copy(from.begin(), from.end(), to.begin());
  return {};
}

Result<void> Image::ReadInto(const memory::GuestMemory& memory, memory::Gpa gpa,
                             std::uint64_t offset, std::uint64_t length) const {
  if (!Fits(offset, length)) return Err(Errc::kBadFormat, "read beyond the end of the image");
  if (!fd_.valid()) return memory.CopyIn(gpa, bytes_.subspan(offset, length));
  while (length != 0) {
    const memory::GuestView view = TRY(memory.ViewRun(gpa, length, memory::Access::kWrite));
    // The kernel copies from the page cache straight into guest memory.
    const iovec target = view.ToIovec();
    TRY(ReadFully(fd_.get(), target.iov_base, target.iov_len, offset));
    view.MarkDirty(0, view.size());
    length -= view.size();
    offset += view.size();
    if (length == 0) break;
    const std::optional<memory::Gpa> next = gpa.CheckedAdd(view.size());
    if (!next) return Err(Errc::kGuestRange, "load into guest memory");
    gpa = *next;
  }
  return {};
}

}  // namespace postern::boot
