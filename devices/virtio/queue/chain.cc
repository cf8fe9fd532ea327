#include "devices/virtio/queue/chain.h"

#include <algorithm>

namespace postern::virtio {

namespace internal {

Cursor::Cursor(Segments segments) : segments_(segments) {
  for (const memory::GuestView& segment : segments) remaining_ += segment.size();
}

template <typename Step>
Result<void> Cursor::Advance(std::uint64_t bytes, Step step) {
  if (bytes > remaining_) return Err(Errc::kGuestProtocol, "virtqueue: request is too short");
  remaining_ -= bytes;
  while (bytes > 0) {
    const memory::GuestView& view = segments_[index_];
    const std::uint64_t length = std::min<std::uint64_t>(bytes, view.size() - offset_);
    TRY(step(view, offset_, length));
    bytes -= length;
    offset_ += length;
    if (offset_ == view.size()) {
      ++index_;
      offset_ = 0;
    }
  }
  return {};
}

Result<std::size_t> Cursor::TakeIovecs(std::uint64_t bytes, std::span<iovec> out) {
  const Cursor start = *this;
  std::size_t count = 0;
  Result<void> taken = Advance(bytes,
                               [&](const memory::GuestView& view, std::uint64_t offset,
                                   std::uint64_t length) -> Result<void> {
                                 if (count == out.size())
                                   return Err(Errc::kExhausted, "virtqueue: too many segments");
                                 iovec entry = view.ToIovec();
                                 entry.iov_base = static_cast<std::byte*>(entry.iov_base) + offset;
                                 entry.iov_len = length;
                                 out[count++] = entry;
                                 return {};
                               });
  if (!taken) {
    *this = start;
    return Unexpected(taken.error());
  }
  return count;
}

}  // namespace internal

Result<void> Reader::Copy(std::span<std::byte> to) {
  return Advance(to.size(),
                 [&](const memory::GuestView& view, std::uint64_t offset, std::uint64_t length) {
                   Result<void> copied = view.CopyOut(offset, to.first(length));
                   to = to.subspan(length);
                   return copied;
                 });
}

Result<void> Reader::Skip(std::uint64_t bytes) {
  return Advance(bytes, [](const memory::GuestView&, std::uint64_t, std::uint64_t) -> Result<void> {
    return {};
  });
}

Result<std::size_t> Reader::Iovecs(std::uint64_t bytes, std::span<iovec> out) {
  return TakeIovecs(bytes, out);
}

Result<void> Writer::Copy(std::span<const std::byte> from) {
  const std::size_t size = from.size();
  TRY(Advance(size, [&](const memory::GuestView& view, std::uint64_t offset, std::uint64_t length) {
    Result<void> copied = view.CopyIn(offset, from.first(length));
    from = from.subspan(length);
    return copied;
  }));
  written_ += size;
  return {};
}

Result<void> Writer::Fill(std::byte value, std::uint64_t bytes) {
  TRY(Advance(bytes, [&](const memory::GuestView& view, std::uint64_t offset,
                         std::uint64_t length) { return view.Fill(offset, length, value); }));
  written_ += bytes;
  return {};
}

Result<void> Writer::Skip(std::uint64_t bytes) {
  return Advance(bytes, [](const memory::GuestView&, std::uint64_t, std::uint64_t) -> Result<void> {
    return {};
  });
}

Result<std::size_t> Writer::Iovecs(std::uint64_t bytes, std::span<iovec> out) {
  const std::size_t count = TRY(TakeIovecs(bytes, out));
  written_ += bytes;
  return count;
}

Result<Writer> Writer::SplitOffTail(std::uint64_t bytes) {
  if (bytes > remaining_) return Err(Errc::kGuestProtocol, "virtqueue: request is too short");
  Writer tail = *this;
  tail.written_ = 0;
  TRY(tail.Skip(remaining_ - bytes));
  remaining_ -= bytes;
  return tail;
}

}  // namespace postern::virtio
