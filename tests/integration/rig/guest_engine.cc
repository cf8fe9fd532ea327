// A driver in user space for the function of tests/support/vfio_user_function.h, which no Linux
// driver knows: it runs as root in a guest and reaches registers, memory, DMA and interrupts by the
// files of sysfs and by /dev/uio0.
//
//   guest_engine BDF memory           every byte of BAR 2, mapped or trapped, keeps what is written
//   guest_engine BDF copies COUNT     the engine copies within guest memory, and nothing beside it
//   guest_engine BDF msix COUNT       three vectors arrive, each where it must, each once; masks
//   guest_engine BDF intx COUNT       INTx through uio_pci_generic, which holds the function
//   guest_engine BDF until-gone       copies until the function reads as all ones
//
// MSI-X without a driver in the kernel: the table's entries name vectors at which Linux only counts
// (posted interrupts of a KVM that the guest does not use), and /proc/interrupts tells.
// Everything ends within five minutes. Exit code 0: all was as it must be.

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <string>

// One process with one thread: what clang-tidy knows of functions that are not thread safe does not
// concern it. NOLINTBEGIN(concurrency-mt-unsafe)
namespace {

// As in tests/support/vfio_user_function.h, which is not for guests.
constexpr size_t kId = 0x00;
constexpr size_t kStatus = 0x04;
constexpr size_t kSource = 0x08;
constexpr size_t kDestination = 0x10;
constexpr size_t kLength = 0x18;
constexpr size_t kVector = 0x1c;
constexpr size_t kDoorbell = 0x20;
constexpr uint32_t kIdValue = 0x52545350;
constexpr uint32_t kDone = 1;
constexpr uint32_t kAllOnes = 0xffffffff;
constexpr size_t kMemorySize = 0x10000;
constexpr size_t kPba = 0x1000;
constexpr size_t kPage = 4096;

// PCI 3.0 6.2.2 (COMMAND), 6.8.2.3 (MSI-X message control).
constexpr off_t kCommand = 0x04;
constexpr uint16_t kMemoryAndMaster = 0x0006;
constexpr uint16_t kIntxDisable = 0x0400;
constexpr uint16_t kMsixEnable = 0x8000;
constexpr uint16_t kMsixMaskAll = 0x4000;

[[noreturn]] void Die(const std::string& what) {
  dprintf(STDERR_FILENO, "guest_engine: %s: %s\n", what.c_str(), strerror(errno));
  exit(1);
}

[[noreturn]] void Wrong(const std::string& what) {
  dprintf(STDERR_FILENO, "guest_engine: %s\n", what.c_str());
  exit(1);
}

void Must(bool good, const std::string& what) {
  if (!good) Wrong(what);
}

int Open(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC);
  if (fd < 0) Die(path);
  return fd;
}

uint64_t Random() {
  static uint64_t state = 0x2545f4914f6cdd1dU;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

// True as soon as `done` is; false after so many milliseconds.
template <typename Done>
bool Within(long milliseconds, Done done) {
  timespec begin{};
  clock_gettime(CLOCK_MONOTONIC, &begin);
  while (!done()) {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1'000'000 >
        milliseconds) {
      return false;
    }
    usleep(100);
  }
  return true;
}

class Bar {
 public:
  Bar(const std::string& function, unsigned index, size_t size) {
    const int fd = Open(function + "/resource" + std::to_string(index), O_RDWR);
    void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) Die("BAR " + std::to_string(index));
    base_ = static_cast<volatile uint8_t*>(at);
    close(fd);
  }
  [[nodiscard]] uint32_t Read(size_t at) const {
    return *reinterpret_cast<volatile uint32_t*>(base_ + at);
  }
  void Write(size_t at, uint32_t value) const {
    *reinterpret_cast<volatile uint32_t*>(base_ + at) = value;
  }
  [[nodiscard]] uint64_t Read64(size_t at) const {
    return *reinterpret_cast<volatile uint64_t*>(base_ + at);
  }
  void Write64(size_t at, uint64_t value) const {
    *reinterpret_cast<volatile uint64_t*>(base_ + at) = value;
  }

 private:
  volatile uint8_t* base_;
};

// A page of guest memory that stays where it is, and its physical address.
struct Page {
  uint8_t* data = nullptr;
  uint64_t address = 0;
};

Page NewPage() {
  void* at = mmap(nullptr, kPage, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
  if (at == MAP_FAILED) Die("a page");
  Page page{.data = static_cast<uint8_t*>(at), .address = 0};
  const int fd = Open("/proc/self/pagemap", O_RDONLY);
  uint64_t entry = 0;
  const auto where = static_cast<off_t>(reinterpret_cast<uintptr_t>(at) / kPage * sizeof(entry));
  // Linux Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bits 0-54 the page's number.
  if (pread(fd, &entry, sizeof(entry), where) != sizeof(entry)) Die("pagemap");
  close(fd);
  Must((entry >> 63) != 0 && (entry & 0x7fffffffffffffU) != 0, "pagemap does not tell");
  page.address = (entry & 0x7fffffffffffffU) * kPage;
  return page;
}

class Engine {
 public:
  explicit Engine(const std::string& bdf)
      : function_("/sys/bus/pci/devices/" + bdf),
        config_(Open(function_ + "/config", O_RDWR)),
        source_(NewPage()),
        destination_(NewPage()) {
    Enable();
    registers_ = new Bar(function_, 0, kPage);
  }

  [[nodiscard]] const std::string& function() const { return function_; }
  [[nodiscard]] const Bar& registers() const { return *registers_; }

  [[nodiscard]] uint16_t Config(off_t at) const {
    uint16_t value = 0;
    if (pread(config_, &value, sizeof(value), at) != sizeof(value)) Die("reading config space");
    return value;
  }
  void SetConfig(off_t at, uint16_t value) const {
    if (pwrite(config_, &value, sizeof(value), at) != sizeof(value)) Die("writing config space");
  }

  // One copy, of random place and length. False: the function is gone.
  [[nodiscard]] bool Copy(uint32_t vector) {
    const size_t length = 1 + Random() % kPage;
    const size_t from = Random() % (kPage - length + 1);
    const size_t to = Random() % (kPage - length + 1);
    for (size_t i = 0; i < kPage; ++i) source_.data[i] = static_cast<uint8_t>(Random());
    memset(destination_.data, 0xa5, kPage);
    registers_->Write(kStatus, kAllOnes);
    registers_->Write64(kSource, source_.address + from);
    registers_->Write64(kDestination, destination_.address + to);
    registers_->Write(kLength, static_cast<uint32_t>(length));
    registers_->Write(kVector, vector);
    registers_->Write(kDoorbell, 1);
    uint32_t status = 0;
    Must(Within(20'000, [&] { return (status = registers_->Read(kStatus)) != 0; }),
         "the engine does not end a copy");
    if (status == kAllOnes) return false;
    Must(status == kDone, "the engine's status is " + std::to_string(status));
    for (size_t i = 0; i < kPage; ++i) {
      const bool copied = i >= to && i < to + length;
      Must(destination_.data[i] == (copied ? source_.data[from + i - to] : 0xa5),
           "wrong byte at " + std::to_string(i) + " of a copy of " + std::to_string(length));
    }
    return true;
  }

  [[nodiscard]] off_t FindMsix() const {
    off_t at = Config(0x34) & 0xfc;
    for (int i = 0; at != 0 && i < 48; ++i) {
      const uint16_t head = Config(at);
      if ((head & 0xff) == 0x11) return at;
      at = head >> 8 & 0xfc;
    }
    Wrong("no MSI-X capability");
  }

 private:
  void Enable() const {
    const int fd = Open(function_ + "/enable", O_WRONLY);
    // 1 again, where a driver enabled it, only counts up.
    if (write(fd, "1", 1) != 1) Die("enable");
    close(fd);
    SetConfig(kCommand, Config(kCommand) | kMemoryAndMaster | kIntxDisable);
  }

  std::string function_;
  int config_;
  Page source_;
  Page destination_;
  const Bar* registers_ = nullptr;
};

void TestMemory(Engine& engine) {
  const Bar memory(engine.function(), 2, kMemorySize);
  for (size_t at = 0; at < kMemorySize; at += 8) memory.Write64(at, at * 0x9e3779b97f4a7c15U + 1);
  for (size_t at = 0; at < kMemorySize; at += 8) {
    Must(memory.Read64(at) == at * 0x9e3779b97f4a7c15U + 1, "BAR 2 forgot " + std::to_string(at));
  }
}

void TestCopies(Engine& engine, unsigned long count) {
  for (unsigned long i = 0; i < count; ++i) Must(engine.Copy(0), "the function is gone");
}

// Linux arch/x86/include/asm/irq_vectors.h, and what /proc/interrupts calls them.
struct CountingVector {
  uint8_t vector;
  const char* name;
};
constexpr std::array<CountingVector, 3> kCounting = {
    {{0xf2, "PIN:"}, {0xf0, "NPI:"}, {0xf1, "PIW:"}}};

std::array<uint64_t, 3> Counts() {
  std::array<uint64_t, 3> counts{};
  FILE* file = fopen("/proc/interrupts", "re");
  if (file == nullptr) Die("/proc/interrupts");
  char line[1024];
  unsigned found = 0;
  while (fgets(line, sizeof(line), file) != nullptr) {
    for (size_t i = 0; i < kCounting.size(); ++i) {
      const char* at = strstr(line, kCounting[i].name);
      if (at == nullptr) continue;
      ++found;
      counts[i] = strtoull(at + 4, nullptr, 10);
    }
  }
  (void)fclose(file);
  Must(found == kCounting.size(), "this kernel does not count the vectors");
  return counts;
}

void TestMsix(Engine& engine, unsigned long count) {
  const Bar table(engine.function(), 4, 2 * kPage);
  const off_t control = engine.FindMsix() + 2;
  for (size_t i = 0; i < kCounting.size(); ++i) {
    table.Write(i * 16, 0xfee00000);  // to the processor with APIC ID 0
    table.Write(i * 16 + 4, 0);
    table.Write(i * 16 + 8, kCounting[i].vector);
    table.Write(i * 16 + 12, 0);
  }
  engine.SetConfig(control, kMsixEnable);
  std::array<uint64_t, 3> expected = Counts();
  const auto arrived = [&] { return Counts() == expected; };
  for (unsigned long i = 0; i < count; ++i) {
    const auto vector = static_cast<uint32_t>(i % kCounting.size());
    ++expected[vector];
    Must(engine.Copy(vector), "the function is gone");
    Must(Within(20'000, arrived),
         "interrupt " + std::to_string(i) + " did not arrive, or not once");
  }
  // Masked, one at a time and all at once: it waits in the pending bits, and comes when it may.
  for (const bool all : {false, true}) {
    if (all) {
      engine.SetConfig(control, kMsixEnable | kMsixMaskAll);
    } else {
      table.Write(16 + 12, 1);
    }
    Must(engine.Copy(1), "the function is gone");
    Must(engine.Copy(1), "the function is gone");
    Must(Within(20'000, [&] { return table.Read(kPba) == 2; }), "a masked vector is not pending");
    usleep(200'000);
    Must(arrived(), "a masked vector arrived");
    ++expected[1];
    if (all) {
      engine.SetConfig(control, kMsixEnable);
    } else {
      table.Write(16 + 12, 0);
    }
    Must(Within(20'000, arrived), "an unmasked vector did not arrive, or not once");
    Must(table.Read(kPba) == 0, "a vector that arrived is still pending");
  }
  engine.SetConfig(control, 0);
}

// uio_pci_generic masks INTx at the function when it comes; a read tells of it.
void TestIntx(Engine& engine, unsigned long count) {
  const int uio = Open("/dev/uio0", O_RDWR);
  const auto wait = [&](const std::string& what) {
    pollfd ready{.fd = uio, .events = POLLIN, .revents = 0};
    uint32_t total = 0;
    Must(poll(&ready, 1, 20'000) == 1, what + ": INTx did not come");
    if (read(uio, &total, sizeof(total)) != sizeof(total)) Die("/dev/uio0");
    Must((engine.Config(kCommand) & kIntxDisable) != 0,
         what + ": INTx is not masked after it came");
  };
  const uint16_t unmasked = engine.Config(kCommand) & static_cast<uint16_t>(~kIntxDisable);
  for (unsigned long i = 0; i < count; ++i) {
    engine.SetConfig(kCommand, unmasked);
    Must(engine.Copy(0), "the function is gone");
    wait("copy " + std::to_string(i));
    // The cause is still there: it comes again as soon as it may.
    if (i % 8 == 0) {
      engine.SetConfig(kCommand, unmasked);
      wait("copy " + std::to_string(i) + ", again");
    }
    engine.registers().Write(kStatus, kAllOnes);
  }
  engine.SetConfig(kCommand, unmasked);
  pollfd ready{.fd = uio, .events = POLLIN, .revents = 0};
  Must(poll(&ready, 1, 300) == 0, "INTx came without a cause");
  engine.SetConfig(kCommand, unmasked | kIntxDisable);
}

void CopyUntilGone(Engine& engine) {
  unsigned long copies = 0;
  while (engine.Copy(0)) {
    if (++copies == 10) dprintf(STDOUT_FILENO, "RIG COPYING\n");
  }
  Must(copies >= 10, "gone before it worked");
  Must(engine.registers().Read(kId) == kAllOnes, "registers of a function that is gone");
  Must(engine.Config(0) == 0xffff, "config space of a function that is gone");
  const Bar memory(engine.function(), 2, kMemorySize);
  Must(memory.Read(0x1000) == kAllOnes, "mapped memory of a function that is gone");
  dprintf(STDOUT_FILENO, "gone after %lu copies\n", copies);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) Wrong("usage: see the head of guest_engine.cc");
  alarm(300);
  const std::string verb = argv[2];
  const unsigned long count = argc > 3 ? strtoul(argv[3], nullptr, 10) : 0;
  Engine engine(argv[1]);
  Must(engine.registers().Read(kId) == kIdValue, "BAR 0 is not the engine's");
  if (verb == "memory") {
    TestMemory(engine);
  } else if (verb == "copies" && count > 0) {
    TestCopies(engine, count);
  } else if (verb == "msix" && count > 0) {
    TestMsix(engine, count);
  } else if (verb == "intx" && count > 0) {
    TestIntx(engine, count);
  } else if (verb == "until-gone") {
    CopyUntilGone(engine);
  } else {
    Wrong("usage: see the head of guest_engine.cc");
  }
  return 0;
}
// NOLINTEND(concurrency-mt-unsafe)
