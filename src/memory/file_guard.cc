#include "src/memory/file_guard.h"

#include <signal.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>

#include "src/base/mutex.h"

namespace postern::memory {
namespace {

// What the handler looks at: it can take no lock. A slot is in use while `size` is not 0.
struct Slot {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::size_t> size{0};
  std::atomic<bool> lost{false};
};
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);

// Signal dispositions are the process's: so is this.
std::array<Slot, FileGuard::kMost> g_slots;
std::atomic<std::size_t> g_used{0};  // slots below this may be in use
Mutex g_mutex;                       // of those who take slots
bool g_installed GUARDED_BY(g_mutex) = false;
struct sigaction g_before {};

Slot* Find(std::uintptr_t at) {
  const std::size_t used = g_used.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < used; ++i) {
    const std::size_t size = g_slots[i].size.load(std::memory_order_acquire);
    const std::uintptr_t begin = g_slots[i].begin.load(std::memory_order_relaxed);
    if (size != 0 && at - begin < size) return &g_slots[i];
  }
  return nullptr;
}

void OnBusError(int /*signal*/, siginfo_t* info, void* /*context*/) {
  const int saved = errno;
  Slot* const slot = Find(reinterpret_cast<std::uintptr_t>(info->si_addr));
  if (slot != nullptr && info->si_code == BUS_ADRERR) {
    void* const begin =
        reinterpret_cast<void*>(slot->begin.load(std::memory_order_relaxed));  // NOLINT
    const void* now =
        mmap(begin, slot->size.load(std::memory_order_relaxed), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    slot->lost.store(true, std::memory_order_release);
    if (now == begin) {
      errno = saved;
      return;
    }
  }
  // The access comes again, and meets what was there before us.
  (void)sigaction(SIGBUS, &g_before, nullptr);
  errno = saved;
}

Result<void> Install() REQUIRES(g_mutex) {
  if (g_installed) return {};
  struct sigaction action {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGBUS, &action, &g_before) != 0) return SysError("sigaction(SIGBUS)");
  g_installed = true;
  return {};
}

}  // namespace

Result<FileGuard> FileGuard::Create(const std::byte* address, std::size_t size) {
  if (size == 0) return Err(Errc::kInvalidArgument, "guarded mapping");
  const MutexLock lock(g_mutex);
  TRY(Install());
  for (std::size_t i = 0; i < kMost; ++i) {
    Slot& slot = g_slots[i];
    if (slot.size.load(std::memory_order_relaxed) != 0) continue;
    slot.lost.store(false, std::memory_order_relaxed);
    slot.begin.store(reinterpret_cast<std::uintptr_t>(address), std::memory_order_relaxed);
    // Pairs with the handler's load: whoever sees the size sees where it begins.
    slot.size.store(size, std::memory_order_release);
    if (i >= g_used.load(std::memory_order_relaxed)) g_used.store(i + 1, std::memory_order_release);
    return FileGuard(i);
  }
  return Err(Errc::kExhausted, "guarded mappings");
}

FileGuard& FileGuard::operator=(FileGuard&& other) noexcept {
  if (this != &other) {
    Release();
    slot_ = std::exchange(other.slot_, kMost);
  }
  return *this;
}

bool FileGuard::lost() const {
  return slot_ < kMost && g_slots[slot_].lost.load(std::memory_order_acquire);
}

void FileGuard::Release() {
  if (slot_ >= kMost) return;
  const MutexLock lock(g_mutex);
  g_slots[slot_].size.store(0, std::memory_order_release);
  slot_ = kMost;
}

}  // namespace postern::memory
