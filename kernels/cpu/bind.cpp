#include "bind.h"

NB_MODULE(SELFGUIDE_MODULE, m) {
  using namespace selfguide;
  bind_linear(m);
}
