#pragma once

// PeerMemory: the memory of devices that other devices of the machine may reach (peer to peer): the
// pages of every member's BARs, mapped at their guest-physical addresses in the address space of
// every member.
//
//   PeerMemory peers;
//   auto gpu = peers.Join(container, "gpu0");
//   auto nic = peers.Join(other_container, "nic0");
//   gpu->Offer(2, Iova(0x4000000000), pages, Access::kReadWrite);   // BAR 2 was mapped: in both
//   gpu->Withdraw(2);                                               // before it is unmapped
//
// Best effort: an address space that refuses (a kernel that does not map memory of devices, an
// address out of its reach, no entries left) goes without; that is counted and never an error. A
// space of several devices has the pages for all of them, members or not. One whose limits exclude
// memory of devices takes none; its device still offers.
//
// Ownership: borrows the spaces, which outlive their members; outlives its members. A member
// unmaps on its way out what it offered, and with the last member of a space goes what others put
// there: no device reaches pages that are no longer the guest's. Threads: any, one mutex; what a
// member offers is its owner's to order.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "iommu/address_space.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/memory/gpa.h"

namespace postern::iommu {

class PeerMemory {
 public:
  class Member {
   public:
    ~Member();
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;

    // Pages of `bar`, from now on until Withdraw; disjoint from all others.
    void Offer(std::size_t bar, Iova at, const HostRange& pages, memory::Access access);
    // All pages of `bar`: when it returns no device reaches them.
    void Withdraw(std::size_t bar);

    // Maps of what it offered, one for each address space; and those that were refused.
    [[nodiscard]] std::uint64_t maps() const { return maps_.Get(); }
    [[nodiscard]] std::uint64_t refused() const { return refused_.Get(); }

   private:
    friend class PeerMemory;
    Member(PeerMemory& owner, AddressSpace& space, std::string name)
        : owner_(owner), space_(space), name_(std::move(name)) {}
    PeerMemory& owner_;
    AddressSpace& space_;
    const std::string name_;
    Counter maps_, refused_;
  };

  PeerMemory() = default;
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // `space`: that of the member's device; it has what the others offer when this returns.
  [[nodiscard]] std::unique_ptr<Member> Join(AddressSpace& space, std::string name);

 private:
  struct Piece {
    Member* owner = nullptr;
    std::size_t bar = 0;
    Iova at;
    HostRange pages;
    memory::Access access = memory::Access::kReadWrite;
    std::vector<AddressSpace*> in;  // where it is mapped
  };
  struct Space {
    AddressSpace* space = nullptr;
    unsigned members = 0;
  };

  static void Map(Piece& piece, AddressSpace& space);
  static void Unmap(const Piece& piece, AddressSpace& space);
  void Leave(const Member& member);

  Mutex mutex_;
  std::vector<Piece> pieces_ GUARDED_BY(mutex_);
  std::vector<Space> spaces_ GUARDED_BY(mutex_);
};

}  // namespace postern::iommu
