/* The ring's wake-up: a writer that rings only a sleeper, and a reader that sleeps only when there is nothing.
 *
 * Each party has a store buffer of one cell, as x86 and ARM have: a store becomes visible later, unless a fence waits
 * for it. Checked: no run ends with the reader asleep and a message unread (an invalid end state), for both kinds of
 * sleep: a futex, which sleeps only if the flag is still set, and a descriptor (-DFD), which remembers the bell.
 *
 * Each of these mutants must fail: -DNO_WRITER_FENCE, -DNO_READER_FENCE, -DNO_RECHECK, -DNO_COMPARE, -DFLAG_STAYS. */
#define MESSAGES 3

byte tail = 0; /* as the other core sees it */
bool flag = false;
byte tail_buffer = 0;
bool tail_pending = false;
bool flag_buffer = false, flag_pending = false;
bool asleep = false; /* in the futex */
bool bell = false;   /* counter of the descriptor */
byte received = 0;

/* The cores write their buffers back at any time. */
active proctype drain_writer() {
  end: do
  :: atomic { tail_pending -> tail = tail_buffer; tail_pending = false }
  od
}

active proctype drain_reader() {
  end: do
  :: atomic { flag_pending -> flag = flag_buffer; flag_pending = false }
  od
}

active proctype writer() {
  byte sent = 0;
  do
  :: sent < MESSAGES ->
    sent++;
    atomic { !tail_pending -> tail_buffer = sent; tail_pending = true }
#ifndef NO_WRITER_FENCE
    !tail_pending;
#endif
    if
    :: flag ->
      /* an exchange is a fence by itself on its own word */
#ifndef FLAG_STAYS
      flag = false;
#endif
#ifdef FD
      bell = true
#else
      asleep = false
#endif
    :: else
    fi
  :: else -> break
  od
}

active proctype reader() {
  do
  :: received < MESSAGES ->
    if
    :: tail > received -> received++
    :: else ->
      atomic { !flag_pending -> flag_buffer = true; flag_pending = true }
#ifndef NO_READER_FENCE
      !flag_pending;
#endif
#ifndef NO_RECHECK
      if
      :: tail > received -> skip
      :: else ->
#endif
#ifdef FD
        bell; /* poll */
        bell = false
#else
#ifdef NO_COMPARE
        asleep = true;
#else
        atomic { /* FUTEX_WAIT reads its own store, from the buffer if need be */
          if
          :: (flag_pending && flag_buffer) || (!flag_pending && flag) -> asleep = true
          :: else
          fi
        }
#endif
        !asleep
#endif
#ifndef NO_RECHECK
      fi
#endif
      ;
      atomic { !flag_pending -> flag_buffer = false; flag_pending = true }
    fi
  :: else -> break
  od
}
