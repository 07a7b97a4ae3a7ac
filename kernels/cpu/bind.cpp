#include "bind.h"

NB_MODULE(SELFGUIDE_MODULE, m) {
  using namespace selfguide;
  bind_attention(m);
  bind_linear(m);
  bind_sampling(m);
}
