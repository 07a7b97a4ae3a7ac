// Philox4x32-10 (Salmon et al., SC 2011); kernels/philox.py is the reference.
#pragma once

#include <cstdint>

namespace selfguide {

// A number in [0, 1): that of Triton's tl.rand(seed, position).
inline float uniform(uint64_t seed, uint64_t position) {
  uint32_t c0 = uint32_t(position), c1 = uint32_t(position >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * c0, product1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint32_t folded = c0 > 0x7FFFFFFFu ? ~c0 : c0;
  return float(folded) * 4.6566127342e-10f;
}

}  // namespace selfguide
