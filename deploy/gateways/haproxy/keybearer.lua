-- Asks keybearer about a request: sets txn.keybearer to "200", "401" or "403", or leaves it unset when
-- there was no answer, and sets the identity headers. haproxy.cfg turns that into an answer.
--
-- Reads the variables txn.keybearer_role and txn.keybearer_scopes: what the request needs.

local url = os.getenv("KEYBEARER_URL") .. "/v1/auth/check"
local caller = "Bearer " .. (os.getenv("KEYBEARER_GATEWAY_TOKEN") or "")
local identity = {
    "x-keybearer-key-id", "x-keybearer-key-name", "x-keybearer-account", "x-keybearer-owner",
    "x-keybearer-owner-email", "x-keybearer-role", "x-keybearer-scopes",
}

local function values(headers, name)
    -- Header lists begin at 0. All of them are passed on: two credentials are none.
    local found, index = {}, 0
    while headers[name] and headers[name][index] do
        table.insert(found, headers[name][index])
        index = index + 1
    end
    return found
end

core.register_action("keybearer", { "http-req" }, function(txn)
    local ask = {
        ["x-keybearer-caller"] = { caller },
        ["authorization"] = values(txn.http:req_get_headers(), "authorization"),
    }
    local role = txn:get_var("txn.keybearer_role")
    if role then ask["x-keybearer-required-role"] = { role } end
    local scopes = txn:get_var("txn.keybearer_scopes")
    if scopes then ask["x-keybearer-required-scopes"] = { scopes } end

    local answer = core.httpclient():get{ url = url, headers = ask, timeout = 1000 }
    if not answer then return end
    local challenge = answer.headers and answer.headers["www-authenticate"]
    txn:set_var("txn.keybearer_challenge", challenge and challenge[0] or "Bearer")
    if answer.status == 200 then
        for _, name in ipairs(identity) do
            local value = answer.headers[name] and answer.headers[name][0]
            -- An answer without all of them is none of keybearer's.
            if not value then return end
            txn.http:req_set_header(name, value)
            -- Where there is no room for it, HAProxy says nothing; no part may pass for the whole.
            if values(txn.http:req_get_headers(), name)[1] ~= value then return end
        end
    end
    if answer.status == 200 or answer.status == 401 or answer.status == 403 then
        txn:set_var("txn.keybearer", tostring(answer.status))
    end
end)
