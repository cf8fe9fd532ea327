// Drives an LLVMFuzzerTestOneInput where libFuzzer is not linked (g++): replays the corpus, then
// runs a fixed number of pseudo-random inputs and mutations of corpus files from a fixed seed. It
// understands the few libFuzzer options the smoke tests pass (-seed=, -runs=, -max_len=), ignores
// the others, and takes files and folders as corpus.
//
// There is no coverage feedback: it proves that the target lives through the corpus and a wide
// sample, not that it is free of bugs. That is what the clang configuration is for.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) __attribute__((weak));

namespace {

using Input = std::vector<std::uint8_t>;

// SplitMix64: eight lines, any seed is a good one, the same numbers on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  std::size_t Below(std::size_t limit) { return limit == 0 ? 0 : Next() % limit; }

 private:
  std::uint64_t state_;
};

void RunOne(const Input& input) {
  // An exact-size heap copy, so that a read past the end is one a sanitizer or a guard sees.
  auto copy = std::make_unique<std::uint8_t[]>(input.size());
  if (!input.empty()) std::memcpy(copy.get(), input.data(), input.size());
  (void)LLVMFuzzerTestOneInput(copy.get(), input.size());
}

Input RandomInput(Random& random, std::size_t max_len) {
  // Short inputs as often as long ones.
  const std::size_t cap = std::size_t{1} << (1 + random.Below(13));
  Input input(random.Below((cap < max_len ? cap : max_len) + 1));
  const std::uint64_t style = random.Below(4);
  for (std::uint8_t& byte : input) {
    const std::uint64_t r = random.Next();
    // Plain noise rarely forms small counts or all-ones words; half of the styles favour them.
    if (style == 0) byte = static_cast<std::uint8_t>(r);
    if (style == 1) byte = (r & 3) == 0 ? static_cast<std::uint8_t>(r >> 8) : 0;
    if (style == 2) byte = (r & 3) == 0 ? static_cast<std::uint8_t>(r >> 8) : 0xff;
    if (style == 3) byte = static_cast<std::uint8_t>((r >> 8) & 0xf);
  }
  return input;
}

Input Mutate(const Input& base, Random& random, std::size_t max_len) {
  Input input = base;
  for (std::size_t n = 1 + random.Below(8); n > 0; --n) {
    if (input.empty()) return RandomInput(random, max_len);
    const std::size_t at = random.Below(input.size());
    switch (random.Below(5)) {
      case 0:
        input[at] = static_cast<std::uint8_t>(random.Next());
        break;
      case 1:
        input[at] = static_cast<std::uint8_t>(input[at] ^ (1U << random.Below(8)));
        break;
      case 2:
        input.resize(at);
        break;
      case 3:
        if (input.size() < max_len) {
          input.insert(input.begin() + static_cast<std::ptrdiff_t>(at),
                       static_cast<std::uint8_t>(random.Next()));
        }
        break;
      default:
        for (std::size_t i = at; i < input.size() && i < at + 8; ++i) {
          input[i] = (random.Next() & 1) != 0 ? 0xff : 0;
        }
    }
  }
  return input;
}

[[noreturn]] void Fail(const std::string& what) {
  std::cerr << "fuzz: " << what << '\n';
  std::_Exit(2);
}

void ReadCorpus(const std::string& path, std::vector<Input>& corpus) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path, error)) {
      if (entry.is_regular_file(error)) ReadCorpus(entry.path().string(), corpus);
    }
    return;
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    Fail("cannot read " + path);
  }
  corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

std::uint64_t ParseNumber(std::string_view text) {
  char* end = nullptr;
  const std::string copy(text);
  const std::uint64_t value = std::strtoull(copy.c_str(), &end, 10);
  if (copy.empty() || *end != '\0') {
    Fail("'" + copy + "' is not a number");
  }
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  if (LLVMFuzzerInitialize != nullptr) (void)LLVMFuzzerInitialize(&argc, &argv);
  std::uint64_t seed = 1;
  std::uint64_t runs = 10000;
  std::size_t max_len = 4096;
  std::vector<Input> corpus;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg.starts_with("-seed=")) {
      seed = ParseNumber(arg.substr(6));
    } else if (arg.starts_with("-runs=")) {
      runs = ParseNumber(arg.substr(6));
    } else if (arg.starts_with("-max_len=")) {
      max_len = ParseNumber(arg.substr(9));
    } else if (!arg.starts_with("-")) {
      ReadCorpus(argv[i], corpus);
    }
  }
  for (const Input& input : corpus) {
    RunOne(input);
  }
  Random random(seed);
  for (std::uint64_t i = 0; i < runs; ++i) {
    const bool mutate = !corpus.empty() && random.Below(2) == 0;
    RunOne(mutate ? Mutate(corpus[random.Below(corpus.size())], random, max_len)
                  : RandomInput(random, max_len));
  }
  std::cout << "fuzz: " << corpus.size() << " corpus files and " << runs << " inputs of seed "
            << seed << '\n';
  return 0;
}
