#pragma once

// VfioUserServer: a device process in a thread: serves one TestFunction by vfio-user on a UNIX
// socket, to one client after the other, and misbehaves where a test wants it to.
//
//   VfioUserServer server;
//   auto device = vfio::UserDevice::Connect(server.path(), memory, loop);
//   ...
//   VfioUserServer hostile({.misbehaviour = {.kind = Misbehaviour::Kind::kDie,
//                                            .at = vfio::UserCommand::kRegionRead}});
//
// Its view of the client (what it received, mapped, was given) is seen(); a test waits for it with
// WaitFor. What it cannot set up ends the process. Threads: all calls from any thread but the
// destructor.

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/base/event_fd.h"
#include "src/base/mutex.h"
#include "src/base/thread.h"
#include "src/base/unix_socket.h"
#include "tests/support/vfio_user_function.h"
#include "vfio/user/protocol.h"

namespace postern::testing {

struct Misbehaviour {
  enum class Kind : std::uint8_t {
    kNone,
    kEdit,            // `edit` changes the bytes of the reply (header and payload)
    kNoFds,           // the reply without its descriptors
    kSilence,         // nothing is answered or read any more
    kDie,             // the connection is closed instead of a reply
    kGarbage,         // 4 KiB of noise instead of a reply
    kHalf,            // half of the reply, then silence
    kManyFds,         // the reply with 40 descriptors
    kUnaskedReply,    // a reply to nothing before the reply
    kWrongCommand,    // the reply, to another command
    kRefuse,          // an error, of errno `number`, instead of a reply
    kFlood,           // requests for DMA without end instead of a reply
    kDmaOutside,      // a request for DMA where nothing is mapped, before the reply
    kDmaLies,         // a DMA write that says it has more data than it has
    kDmaHuge,         // a DMA read of 2^40 bytes
    kDmaFds,          // a DMA read with a descriptor
    kUnknownRequest,  // a command no client knows, before the reply
  };
  Kind kind = Kind::kNone;
  vfio::UserCommand at = vfio::UserCommand::kVersion;
  unsigned skip = 0;  // so many of them are answered well before
  std::function<void(std::vector<std::byte>&)> edit = {};
  std::uint32_t number = 0;
};

struct VfioUserServerOptions {
  TestFunction::Options function = {};
  bool can_reset = true;
  bool request_irq = false;      // kRequestIrq exists
  bool dma_by_message = false;   // also where memory came with a descriptor
  bool dma_after_reply = false;  // the doorbell is answered first, then data moves
  vfio::UserCapabilities offers{.max_msg_fds = 8};
  Misbehaviour misbehaviour = {};
};

class VfioUserServer {
 public:
  // In a directory of its own.
  explicit VfioUserServer(VfioUserServerOptions options = {});
  VfioUserServer(VfioUserServerOptions options, std::string path);
  ~VfioUserServer();
  VfioUserServer(const VfioUserServer&) = delete;
  VfioUserServer& operator=(const VfioUserServer&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }

  struct Seen {
    std::map<vfio::UserCommand, unsigned> commands;
    unsigned connections = 0;
    unsigned closed = 0;      // connections that ended
    unsigned dma_errors = 0;  // requests for DMA the client refused
    unsigned errors = 0;      // commands this server refused
    std::size_t mappings = 0;
    std::size_t mappings_by_file = 0;
    std::array<std::vector<bool>, vfio::kIrqCount> assigned;  // vectors with an eventfd
    bool intx_masked = false;
    unsigned resets = 0;
  };
  [[nodiscard]] Seen seen() const;
  // Until `done` says so; false after 10 s.
  [[nodiscard]] bool WaitFor(const std::function<bool(const Seen&)>& done);

  // Signals a vector, if it has an eventfd.
  void Raise(std::uint32_t irq, std::uint32_t vector);
  // Closes the connection that is there.
  void Drop();

 private:
  friend class VfioUserPeer;
  void Run();
  void Note(const std::function<void(Seen&)>& change);

  const VfioUserServerOptions options_;
  TestFunction function_;  // the server's thread, as is came_
  std::string directory_;  // to be removed
  std::string path_;
  UnixListener listener_;
  EventFd stop_{Fd()};
  EventFd drop_{Fd()};
  mutable Mutex mutex_;
  std::condition_variable_any changed_;
  Seen seen_ GUARDED_BY(mutex_);
  std::array<std::vector<std::optional<EventFd>>, vfio::kIrqCount> events_ GUARDED_BY(mutex_);
  unsigned came_ = 0;  // commands of the kind options_.misbehaviour waits for
  Thread thread_;
};

}  // namespace postern::testing
