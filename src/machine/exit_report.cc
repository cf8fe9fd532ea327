#include "src/machine/exit_report.h"

namespace postern {

int ExitReport::exit_code() const {
  switch (reason) {
    case Reason::kPowerOff:
    case Reason::kStopped:
      return 0;
    case Reason::kReset:
      return 3;
    case Reason::kTripleFault:
    case Reason::kInternalError:
      return 4;
    case Reason::kHostError:
      return 1;
  }
  return 1;
}

}  // namespace postern
