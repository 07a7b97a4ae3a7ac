#include "bind.h"

NB_MODULE(SELFGUIDE_MODULE, m) {
  using namespace selfguide;
  bind_attention(m);
  bind_cross_entropy(m);
  bind_linear(m);
  bind_lora(m);
  bind_norm(m);
  bind_paged_attention(m);
  bind_rope(m);
  bind_swiglu(m);
  bind_sampling(m);
}
