// A certified provider for the tests of the console. It prints its port, reads the origin of the
// console from its standard input, serves, and ends with its input. Every further line says by how
// many milliseconds its clock is ahead from there on.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { Provider } = await import(pathToFileURL(`${process.argv[2]}/oidc-provider/lib/index.js`));
let answer = (_request, response) => response.writeHead(503).end();
const server = createServer((request, response) => answer(request, response));
server.listen(0, "127.0.0.1", () => console.log(`port ${server.address().port}`));

const lines = createInterface({ input: process.stdin });
const now = Date.now;
lines.on("line", (ahead) => {
  if (Number.isNaN(Number(ahead))) return;
  Date.now = () => now() + Number(ahead);
  console.log("ready");
});
lines.once("line", (origin) => {
  const provider = new Provider(`http://localhost:${server.address().port}`, {
    clients: [{
      client_id: "keybearer-console",
      client_secret: "a secret: %/+&",
      redirect_uris: [`${origin}/console/sign-in/callback`],
      backchannel_logout_uri: `${origin}/console/backchannel-logout`,
      backchannel_logout_session_required: true,
      // Plain text on this machine is for native applications alone, in the eyes of the provider.
      application_type: "native",
    }],
    cookies: { keys: ["for the tests alone"] },
    features: { backchannelLogout: { enabled: true }, devInteractions: { enabled: true } },
    claims: { openid: ["sub", "sid"], email: ["email", "email_verified"] },
    conformIdTokenClaims: false,
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@id.example.com`, email_verified: true }),
    }),
    // The provider sends nothing to this machine by itself: its dispatcher refuses such addresses.
    fetch: (url, { dispatcher: _, ...options }) => fetch(url, options),
    pkce: { required: () => true },
  });
  answer = provider.callback();
  console.log("ready");
});
lines.on("close", () => process.exit(0));
