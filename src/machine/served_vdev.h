#pragma once

// MakeServedVdev: a virtual device of a configuration as a vfio-user server serves it.
//
//   auto server = vfio::UserServer::Create(socket, loop, [&]() {
//     return MakeServedVdev(config, "dsa0", loop);
//   });
//
// How many CPUs the client's guest has is not known: PortalMode kAuto is kTrapped here. Polled
// portals are the user's choice, who knows that one CPU submits; a driver that breaks their rule
// halts the device (siov::VdevOptions::pages_leave).
//
// Ownership: the device borrows the loop, on whose thread it is made and destroyed.

#include <memory>
#include <string>

#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/machine/config.h"
#include "vfio/user/served.h"

namespace postern {

// `detail`, if given, gets "dsa-ro, 1 queue of 32, trapped portals, engine of 1 thread".
[[nodiscard]] Outcome<std::unique_ptr<vfio::UserServed>> MakeServedVdev(
    const VdevConfig& config, const std::string& id, EventLoop& loop,
    std::string* detail = nullptr);

}  // namespace postern
