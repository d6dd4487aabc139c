"""The server's connections: Hypercorn's HTTP/1.1 and HTTP/2 with bounds and deadlines, so that no client uses them up.

May import ``config`` and the server's ``middleware``, ``responses`` and ``sockets``, and no route.

Hypercorn's own ``serve`` cannot be configured to do the following. A change of Hypercorn or h2 would remove the module:

================= ========================================================== ==========================================
module            reason                                                     change upstream that would remove it
================= ========================================================== ==========================================
accepting         ``serve`` accepts connections without a bound, and keeps   bounds on connections, for each address,
                  idle ones when a new client needs the room                 with some kept for health checks
connection        idle timers stop at an HTTP/2 preface; no deadline for a   deadlines for heads, for idleness and for
                  client that takes nothing; 64 kB of every socket is read   progress of responses, for every protocol
                  and written ahead
http1             100 Continue before the application reads; empty reason    100 Continue on the first ``receive``;
                  phrases; Content-Length with Transfer-Encoding             reason phrases; such requests refused
http2             a stream's buffer copies bodies of any size, and stays     buffers that hold the application back,
                  when the client has gone; no deadline for a closed window  and are dropped with their stream
frames            h2 keeps unknown settings, priorities and heads without    bounds on frames that transfer nothing,
                  end; floods of frames cost a request each                  and on memory, in h2
response_budget   nothing bounds the response bodies of all connections      a bound in all and for each address
limits, settings  the counters and numbers that these modules need           (go with them)
================= ========================================================== ==========================================
"""

from whisper_api.server.connections.accepting import Connections
from whisper_api.server.connections.connection import log_lost
from whisper_api.server.connections.settings import Bounds, bounds_of, raise_open_files, settings_of

__all__ = ["Bounds", "Connections", "bounds_of", "log_lost", "raise_open_files", "settings_of"]
