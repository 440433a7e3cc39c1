/* The session: one agent writes MESSAGES numbered messages to brokers that die and hand over.
 *
 * A frame may be lost and a connection break. A broker marks a message only after its effect; what it marked it acknowledges, and the agent
 * forgets only that. At HELLO the broker says what need not be replayed; an agent that was answered before does not wait
 * for that: what it holds goes right behind HELLO, and so does what it writes meanwhile. A broker that died knows nothing; its
 * successor takes the agent's oldest number for the next one, and marks as doubtful all that was ever sent. A broker
 * that hands over is quiet first, and its successor knows what was marked.
 *
 * Checked: effects come in order without a gap; one that comes again is marked, and only after a death; in the end,
 * when nothing is lost any more, all messages had their effect and the agent holds none.
 *
 * Each of these mutants must fail: -DACK_ON_ARRIVAL, -DFORGET_RECEIVED, -DNO_REPLAY, -DNO_DOUBT, -DNO_DOUBT_AHEAD,
 * -DHANDOFF_OF_RECEIVED. */
#define MESSAGES 2
#define DEATHS 1
#define HANDOFFS 1
#define LOSSES 1
#define BREAKS 1
#define RETRIES 8 /* more epochs than deaths, handoffs and losses can make the agent use */

mtype = { HELLO, WELCOME, DATA, ACK };
/* kind, epoch, number or base, sent or received, ack */
chan up = [3] of { mtype, byte, byte, byte, byte };
chan down = [3] of { mtype, byte, byte, byte, byte };

byte deaths = 0, handoffs = 0, losses = 0, breaks = 0;
byte effects = 0; /* highest message that had its effect */
bool died = false;

/* the agent */
byte epoch = 0, base = 1, written = 0, sent = 0, ahead = 0;
bool shaken = false, agreed = false, asked = false; /* asked: HELLO was said, and not answered yet */

/* the broker */
byte known = 0, b_epoch = 0, expected = 1, marked = 0, doubt = 0, taken = 0;

#define stuck (empty(up) && empty(down) && !(known && (taken + 1 < expected || marked < taken || base <= marked)))

inline forget(upto) { do :: base <= upto && base <= written -> base++ :: else -> break od }

active proctype agent() {
  byte e, n, r, a, i;
  end: do
  :: atomic { !shaken && epoch < RETRIES && nfull(up) && len(up) == 0 && len(down) == 0 ->
       epoch++; up!HELLO(epoch, base, sent, base - 1); asked = true; ahead = 0;
       if
       :: agreed ->
            ahead = base - 1;
            do :: ahead < written -> ahead++; up!DATA(epoch, ahead, 0, 0) :: else -> break od
       :: true /* it is too long for that */
       fi }
  :: atomic { asked && agreed && written < MESSAGES && ahead == written && nfull(up) ->
       written++; ahead = written; up!DATA(epoch, written, 0, 0);
#ifndef NO_DOUBT_AHEAD
       sent = written
#endif
       }
  :: atomic { shaken && written < MESSAGES && nfull(up) ->
       written++; sent = written; up!DATA(epoch, written, 0, 0) }
  :: atomic { shaken && breaks < BREAKS -> breaks++; shaken = false } /* the connection broke */
  :: atomic { shaken && base <= written && stuck && epoch < RETRIES -> shaken = false } /* a sign of life was missing */
  :: atomic { down?[WELCOME, e, n, r, a] -> down?WELCOME(e, n, r, a);
       if
       :: e == epoch && !shaken ->
            shaken = true; agreed = true; asked = false;
#ifdef FORGET_RECEIVED
            forget(r);
#else
            forget(a);
#endif
#ifndef NO_REPLAY
            i = (r + 1 > base -> r + 1 : base);
            i = (ahead + 1 > i -> ahead + 1 : i);
            do :: i <= written && nfull(up) -> up!DATA(epoch, i, 0, 0); i++ :: else -> break od;
#endif
            i = 0
       :: else
       fi; e = 0; n = 0; r = 0; a = 0 }
  :: atomic { down?[ACK, e, n, r, a] -> down?ACK(e, n, r, a);
       if
       :: e == epoch && shaken -> forget(a)
       :: else
       fi; e = 0; n = 0; r = 0; a = 0 }
  od
}

inline effect(n) {
  assert(n <= effects + 1);                      /* no gap */
  assert(n > effects || (n <= doubt && died));   /* again only in doubt, and after a death */
  if :: n > effects -> effects = n :: else fi
}

active proctype broker() {
  byte e, n, s, a;
  end: do
  :: atomic { nfull(down) && up?[HELLO, e, n, s, a] -> up?HELLO(e, n, s, a);
       if
       :: e > b_epoch ->
            b_epoch = e;
            if
            :: !known ->
                 known = 1; expected = n; marked = n - 1; taken = n - 1;
#ifndef NO_DOUBT
                 doubt = s
#endif
            :: else
            fi;
            down!WELCOME(e, 0, expected - 1, marked)
       :: else
       fi; e = 0; n = 0; s = 0; a = 0 }
  :: atomic { up?[DATA, e, n, s, a] -> up?DATA(e, n, s, a);
       if
       :: known && e == b_epoch && n == expected -> expected++
       :: else
       fi; e = 0; n = 0; s = 0; a = 0 }
  :: atomic { known && taken + 1 < expected -> taken++; effect(taken) }
  :: atomic { known && marked < taken -> marked = taken }
#ifdef ACK_ON_ARRIVAL
  :: atomic { known && marked < expected - 1 && nfull(down) && len(down) == 0 -> down!ACK(b_epoch, 0, 0, expected - 1) }
#endif
  :: atomic { known && marked > 0 && base <= marked && len(down) == 0 -> down!ACK(b_epoch, 0, 0, marked) }
  :: atomic { known && deaths < DEATHS -> /* dies; the connection with it */
       deaths++; died = true; known = 0; b_epoch = 0; expected = 1; marked = 0; taken = 0; doubt = 0;
       do :: up?_,_,_,_,_ :: empty(up) -> break od; do :: down?_,_,_,_,_ :: empty(down) -> break od; shaken = false }
  :: atomic { known && handoffs < HANDOFFS && marked == taken -> /* quiet, then another process goes on */
       handoffs++;
#ifdef HANDOFF_OF_RECEIVED
       marked = expected - 1; taken = marked;
#else
       expected = marked + 1;
#endif
       do :: up?_,_,_,_,_ :: empty(up) -> break od; do :: down?_,_,_,_,_ :: empty(down) -> break od; shaken = false }
  od
}

active proctype network() {
  end: do
  :: atomic { losses < LOSSES && nempty(up) -> up?_,_,_,_,_; losses++ }
  :: atomic { losses < LOSSES && nempty(down) -> down?_,_,_,_,_; losses++ }
  od
}

/* At rest, all that was written had its effect and is forgotten. */
active proctype observer() {
  end: atomic { timeout -> assert(effects == written && base == written + 1) }
}
