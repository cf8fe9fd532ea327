#pragma once

// VfioUserPeer: one connection of a VfioUserServer, on the server's thread: commands in, replies
// (right or wrong ones) out, and the device's own requests for DMA.

#include <deque>
#include <map>
#include <span>
#include <vector>

#include "src/base/mmap.h"
#include "src/base/result.h"
#include "tests/support/vfio_user_server.h"
#include "vfio/user/channel.h"

namespace postern::testing {

class VfioUserPeer {
 public:
  VfioUserPeer(Fd socket, VfioUserServer& server)
      : server_(server), options_(server.options_), channel_(std::move(socket), {}) {}
  // Until the client goes, or the server is to stop.
  void Run();

 private:
  struct DmaMapping {
    std::uint64_t size = 0;
    bool readable = false;
    bool writable = false;
    Mmap memory;  // nothing: by message
  };
  using Payload = std::span<const std::byte>;

  // Until the socket has news. False: the connection is at its end.
  [[nodiscard]] bool Wait();
  [[nodiscard]] Result<void> Handle(vfio::UserMessage& message);
  [[nodiscard]] Result<void> Dispatch(vfio::UserMessage& message);
  [[nodiscard]] Result<void> Version(const vfio::UserMessage& message);
  [[nodiscard]] Result<void> Query(const vfio::UserMessage& message);
  [[nodiscard]] Result<void> RegionInfo(const vfio::UserHeader& header,
                                        const vfio::UserQuery& query);
  [[nodiscard]] Result<void> IrqInfo(const vfio::UserHeader& header, const vfio::UserQuery& query);
  [[nodiscard]] Result<void> Map(vfio::UserMessage& message);
  [[nodiscard]] Result<void> Unmap(const vfio::UserMessage& message);
  [[nodiscard]] Result<void> SetIrqs(vfio::UserMessage& message);
  // An errno, or 0.
  [[nodiscard]] std::uint32_t SetTriggers(const vfio::UserSetIrqs& set, std::vector<Fd> fds);
  void MaskIntx(bool masked);
  [[nodiscard]] Result<void> Access(const vfio::UserMessage& message);
  [[nodiscard]] vfio::IrqInfo Irq(std::uint32_t index) const;

  [[nodiscard]] Result<void> Reply(const vfio::UserHeader& to, Payload payload,
                                   std::span<const int> fds = {});
  [[nodiscard]] Result<void> Refuse(const vfio::UserHeader& to, std::uint32_t error);
  // A misbehaviour that is due now. False: the reply goes out as well.
  [[nodiscard]] Result<bool> Misbehave(const vfio::UserHeader& to, Payload payload,
                                       std::span<const int> fds);
  [[nodiscard]] Result<bool> MisspeakTo(const vfio::UserHeader& to, Payload payload);
  [[nodiscard]] Result<void> SendRaw(std::span<const std::byte> bytes,
                                     std::span<const int> fds = {});
  void Silence();

  // The copy the doorbell asked for, with its interrupt.
  void RunEngine();
  [[nodiscard]] bool Copy(const TestFunction::Copy& copy);
  [[nodiscard]] bool ReadMemory(std::uint64_t address, std::span<std::byte> to);
  [[nodiscard]] bool WriteMemory(std::uint64_t address, Payload from);
  // The bytes of a mapping that came with a file; empty: ask.
  [[nodiscard]] std::span<std::byte> Direct(std::uint64_t address, std::size_t length, bool write);
  // A request to the client and its answer; commands that come meanwhile wait.
  [[nodiscard]] Result<vfio::UserMessage> Ask(vfio::UserCommand command, Payload payload,
                                              std::span<const int> fds = {});
  void Interrupt(std::uint32_t vector);
  // Where the level is high and not masked.
  void RaiseIntx();

  VfioUserServer& server_;
  const VfioUserServerOptions& options_;
  vfio::UserChannel channel_;
  vfio::UserCapabilities client_;
  std::map<std::uint64_t, DmaMapping> mappings_;
  std::deque<vfio::UserMessage> later_;
  std::uint16_t next_id_ = 0x8000;
  bool intx_masked_ = false;
  bool misbehave_now_ = false;
};

}  // namespace postern::testing
